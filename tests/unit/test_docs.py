"""The README and the manual are held by tests: what the code has is in them, and what they name exists."""

import ast
import functools
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

import amalgam.errors
from amalgam.__main__ import app as cli
from amalgam.cli import vllm_flags
from amalgam.errors.code_table import ALSO_FINDINGS, FINDINGS, JOB_CODES
from amalgam.merge.methods import METHODS
from amalgam.settings import setting_fields, variable
from amalgam.settings.sources import OTHER_VARIABLES
from amalgam.telemetry.metric_table import METRICS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "server" / "amalgam"
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
PAGES = sorted(DOCS.glob("*.md"))
TEXTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "Dockerfile")),
    *sorted((ROOT / "deploy").rglob("*.yaml")),
    *PAGES,
    *sorted((DOCS / "decisions").glob("*.md")),
]


def load_generator() -> ModuleType:
    """`docs/generate.py`, which is no module of the package."""
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules["docs_generate"] = module
    spec.loader.exec_module(module)
    return module


GENERATOR = load_generator()


def table_rows(text: str) -> list[list[str]]:
    """The cells of every table row whose first cell is code."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row] for row in rows]


def first_codes(page: str) -> list[str]:
    return [re.findall(r"`([^`]+)`", row[0])[0] for row in table_rows((DOCS / page).read_text())]


# --- the generated pages


@pytest.mark.parametrize("page", GENERATOR.pages(), ids=lambda page: page.name)
def test_a_generated_page_is_what_make_docs_writes(page: Path) -> None:
    text = page.read_text()
    assert text == GENERATOR.fresh(text), f"{page.name} is out of date: run `make docs`"


def test_every_table_stands_on_one_page() -> None:
    """Without its markers a table would be compared with nothing."""
    found = [name for page in PAGES for _, name, _, _ in GENERATOR.BETWEEN.findall(page.read_text())]
    assert sorted(found) == sorted(GENERATOR.TABLES)


def test_the_generated_pages_hold_a_row_for_each() -> None:
    """A generator that lost something would agree with a page that lost it too."""
    assert first_codes("settings.md") == [*map(variable, setting_fields()), *OTHER_VARIABLES]
    assert first_codes("metrics.md") == [spec.name for spec in METRICS]
    assert first_codes("merging.md")[: len(METHODS)] == list(METHODS)
    codes = first_codes("errors.md")
    assert len(codes) == len(set(codes)), "a code stands on the page twice"
    assert len(codes) > 130


def test_a_page_that_was_changed_by_hand_is_noticed() -> None:
    text = (DOCS / "metrics.md").read_text()
    assert GENERATOR.fresh(text.replace("counter", "gauge")) == text


# --- settings


def command_variables() -> set[str]:
    """Variables that options of the command line read."""

    def walk(command: Any) -> Iterator[str]:
        for parameter in command.params:
            variable = parameter.envvar
            yield from [variable] if isinstance(variable, str) else variable or ()
        for inner in getattr(command, "commands", {}).values():
            yield from walk(inner)

    return set(walk(typer.main.get_command(cli)))


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_variable_that_a_text_names_exists(path: Path) -> None:
    known = (
        set(map(variable, setting_fields()))
        | command_variables()
        | {name.removesuffix("_*") for name in OTHER_VARIABLES}
    )
    assert set(re.findall(r"\bAMALGAM_[A-Z_]*[A-Z]", path.read_text())) - known == set()


# --- error codes


def code_positions(tree: ast.AST) -> dict[str, int]:
    """Function or class name -> place of its parameter ``code`` in a call."""
    places: dict[str, int] = {}
    for node in ast.walk(tree):
        functions: list[tuple[ast.ClassDef | ast.FunctionDef, ast.FunctionDef]] = []
        if isinstance(node, ast.FunctionDef):
            functions = [(node, node)]
        if isinstance(node, ast.ClassDef):
            functions = [(node, f) for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"]
        for named, function in functions:
            names = [argument.arg for argument in function.args.args if argument.arg != "self"]
            if "code" in names:
                places[named.name] = names.index("code")
    return places


@functools.cache
def literal_codes() -> dict[str, str]:
    """Code -> file, of every constant that is passed as a ``code``: findings, and jobs that fail without a class."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
    shared = {name: place for tree in trees.values() for name, place in code_positions(tree).items()}
    found: dict[str, str] = {}
    for path, tree in trees.items():
        places = shared | code_positions(tree)
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            passed = [keyword.value for keyword in call.keywords if keyword.arg == "code"]
            name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
            if name in places and len(call.args) > places[name]:
                passed.append(call.args[places[name]])
            for value in passed:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    found[value.value] = path.relative_to(PACKAGE).as_posix()
    return found


def documented_codes() -> dict[str, set[int]]:
    return {
        row[0].strip("`"): set(map(int, re.findall(r"\d{3}", row[1])))
        for row in table_rows((DOCS / "errors.md").read_text())
    }


def test_literal_codes_are_found() -> None:
    # If the search above broke, the tests below would pass on nothing.
    found = literal_codes()
    assert {"no_effect", "unsupported_bias", "file_ignored", "job_cancelled", "attempts_exhausted"} <= found.keys()


def test_every_error_code_is_on_the_page() -> None:
    written = documented_codes()
    assert {code: file for code, file in literal_codes().items() if code not in written} == {}
    assert sorted(GENERATOR.class_codes().keys() - written.keys()) == []


def test_documented_statuses_are_those_of_the_classes() -> None:
    written = documented_codes()
    wrong = {
        code: (written[code], statuses)
        for code, statuses in GENERATOR.class_codes().items()
        if not statuses <= written.get(code, set())
    }
    assert wrong == {}


def test_every_described_code_exists() -> None:
    assert {spec.code for spec in (*FINDINGS, *JOB_CODES)} | set(ALSO_FINDINGS) <= literal_codes().keys()
    assert sorted(documented_codes().keys() - GENERATOR.class_codes().keys() - literal_codes().keys()) == []


def test_of_the_classes_of_one_code_exactly_one_says_the_next_step() -> None:
    """In a paragraph of its docstring that begins with ``Next step:``; the page takes it from there."""
    telling: dict[str, list[str]] = {}
    for cls in filter(GENERATOR.declares_its_code, GENERATOR.error_classes()):
        telling.setdefault(cls.code, []).extend([cls.__name__] if GENERATOR.told(cls) else [])
    assert {code: names for code, names in telling.items() if len(names) != 1} == {}


def test_every_error_says_what_it_is() -> None:
    assert [cls.__name__ for cls in GENERATOR.error_classes() if not inspect.getdoc(cls)] == []


def test_the_drawn_error_tree_has_every_module_of_classes() -> None:
    modules = {cls.__module__ for cls in GENERATOR.error_classes() if cls.__module__.startswith("amalgam.errors.")}
    drawn = re.findall(r"[├└]── (errors\.\w+) ", inspect.getdoc(amalgam.errors) or "")
    assert sorted(drawn) == sorted(name.removeprefix("amalgam.") for name in modules)


# --- metrics and routes


def test_every_metric_that_a_dashboard_or_rule_asks_for_exists() -> None:
    asked: set[str] = set()
    for path in (ROOT / "deploy").rglob("*"):
        if path.suffix in (".yaml", ".yml", ".json"):
            asked |= set(re.findall(r"(?<![\w:])amalgam_[a-z_]+[a-z](?![\w:])", path.read_text()))
    series = {spec.name for spec in METRICS}
    series |= {
        f"{spec.name}_{part}" for spec in METRICS if spec.kind == "histogram" for part in ("bucket", "sum", "count")
    }
    assert asked - series == set()


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return GENERATOR.openapi_document()  # type: ignore[no-any-return]


def test_every_route_is_on_the_page_and_no_other(document: dict[str, Any]) -> None:
    routes = [f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods]
    assert sorted(first_codes("routes.md")) == sorted(routes)


def example_shapes(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if path.startswith("/admin/"):
                yield f"{method.upper()} {path}", operation


def has_example(schema: dict[str, Any], document: dict[str, Any]) -> bool:
    """Whether the schema, or each of its fields, carries an example."""
    for part in (*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else ())):
        if has_example(part, document):
            return True
    if "$ref" in schema:
        return has_example(document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]], document)
    fields = schema.get("properties", {})
    return "examples" in schema or any(has_example(field, document) for field in fields.values())


def test_every_admin_body_and_answer_has_an_example_and_errors_have_our_shape(document: dict[str, Any]) -> None:
    without = []
    for name, operation in example_shapes(document):
        # These say that there is nothing to describe.
        empty = ("204", "304")
        shapes = {code: answer["content"] for code, answer in operation["responses"].items() if code not in empty}
        if "requestBody" in operation:
            shapes["body"] = operation["requestBody"]["content"]
        for which, content in shapes.items():
            for media, described in content.items():
                if not has_example(described["schema"], document):
                    without.append((name, which, media))
        assert operation["responses"]["default"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorView")
        assert operation["security"] == [{"adminKey": []}], name
    assert without == []
    assert "HTTPValidationError" not in document["components"]["schemas"]


# --- the texts themselves


def relative_links(path: Path) -> list[str]:
    found = re.findall(r"\]\(([^)#]+)\)", path.read_text())
    return [link for link in found if "://" not in link]


@pytest.mark.parametrize("path", [text for text in TEXTS if text.suffix == ".md"], ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    assert [link for link in relative_links(path) if not (path.parent / link).exists()] == []


def test_flags_of_the_command_line_that_the_pages_name_exist() -> None:
    def walk(command: Any) -> Iterator[str]:
        for parameter in command.params:
            yield from (*parameter.opts, *parameter.secondary_opts)
        for inner in getattr(command, "commands", {}).values():
            yield from walk(inner)

    ours = set(walk(typer.main.get_command(cli)))
    # Those behind `--` are vLLM's, those of curl and docker are theirs, and so are those of the benchmarks.
    others = {f"--{name.replace('_', '-')}" for name in vllm_flags.known()}
    others |= {
        "--tensor-parallel-size",
        "--gpu-memory-utilization",
        "--target",
        "--media-io-kwargs",
        "--shm-size",
        "--read-only",
        "--tmpfs",
        "--device",
        "--out",
    }
    pages = [README, *(page.read_text() for page in PAGES if page.name != "releasing.md")]  # that one is of other tools
    named = {flag for text in pages for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)}
    assert named - ours - others == set()


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    """Names in code with a folder and an ending, below the package, the repository or the tests."""
    named = re.findall(r"`((?:[\w.-]+/)+[\w-]+\.(?:py|md|yaml|yml|toml|sh))`", page.read_text())
    roots = (PACKAGE, ROOT, DOCS)
    missing = [name for name in named if not any((root / name).exists() for root in roots) and "NNNN" not in name]
    assert missing == []


def test_the_readme_stays_short() -> None:
    assert README.count("\n") <= 220


def test_the_site_has_every_page() -> None:
    menu = (ROOT / "mkdocs.yml").read_text()
    assert [page.name for page in PAGES if page.name not in menu] == []


def test_decisions_are_numbered_and_of_one_form() -> None:
    records = sorted((DOCS / "decisions").glob("0*.md"))
    assert [int(path.name[:4]) for path in records] == list(range(1, len(records) + 1))
    listed = re.findall(r"\]\((\d{4}[^)]+)\)", (DOCS / "decisions" / "README.md").read_text())
    assert listed == [path.name for path in records]
    for path in records:
        text = path.read_text()
        assert text.startswith(f"# {int(path.name[:4])}. "), path.name
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"], path.name


def test_every_test_that_the_page_on_merging_names_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`: `(test_\w+)`", (DOCS / "merging.md").read_text())
    assert len(named) >= 30
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text(), f"{path}: {name}"
