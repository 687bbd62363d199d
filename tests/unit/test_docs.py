"""The README is held by tests: what the code has is in it, and what it names exists."""

import ast
import functools
import importlib
import inspect
import pkgutil
import re
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic_core import PydanticUndefined

import amalgam.api
import amalgam.errors
from amalgam.__main__ import app as cli
from amalgam.app import create_app
from amalgam.errors import AmalgamError
from amalgam.merge.methods import METHODS
from amalgam.settings import Settings
from amalgam.telemetry.metric_table import METRICS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "server" / "amalgam"
README = (ROOT / "README.md").read_text()
TEXTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Dockerfile")),
    *sorted((ROOT / "deploy").rglob("*.yaml")),
    *sorted((PACKAGE / "decisions").glob("*.md")),
]


def section(title: str) -> str:
    """The README's text below ``## title``."""
    return README.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def table_rows(text: str) -> list[list[str]]:
    """The cells of every table row whose first cell is code."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row] for row in rows]


def first_codes(text: str) -> list[str]:
    return [re.findall(r"`([^`]+)`", row[0])[0] for row in table_rows(text)]


def require_rows(expected: Sequence[str], title: str) -> None:
    """The section's tables hold these rows exactly; a failure shows those to paste."""
    lines = set(section(title).splitlines())
    missing = [row for row in expected if row not in lines]
    assert not missing, f"the README's section {title!r} lacks:\n" + "\n".join(missing)


# --- settings


def shown_default(value: Any) -> str:
    if value is None or value in ((), ""):
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{','.join(value)}`"
    if isinstance(value, float) and value.is_integer():
        return f"`{int(value)}`"
    text = str(value)
    return f"`{text.replace(str(Path.home()), '~', 1)}`"


def setting_rows() -> list[str]:
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.default_factory() if field.default is PydanticUndefined else field.default  # type: ignore[misc,call-arg]
        rows.append(f"| `AMALGAM_{name.upper()}` | {shown_default(default)} | {field.description} |")
    return rows


def test_every_setting_is_in_the_readme_with_its_default_and_help() -> None:
    require_rows(setting_rows(), "Settings")
    assert len(table_rows(section("Settings"))) == len(Settings.model_fields)


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
    known = {f"AMALGAM_{name.upper()}" for name in Settings.model_fields} | command_variables()
    assert set(re.findall(r"\bAMALGAM_[A-Z_]*[A-Z]", path.read_text())) - known == set()


# --- error codes


def error_classes() -> list[type[AmalgamError]]:
    for package in (amalgam.errors, amalgam.api):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)

    def walk(cls: type[AmalgamError]) -> Iterator[type[AmalgamError]]:
        yield cls
        for inner in cls.__subclasses__():
            yield from walk(inner)

    return [cls for cls in walk(AmalgamError) if cls.__module__.startswith("amalgam.")]


def class_codes() -> dict[str, set[int]]:
    """Code -> statuses, of every class; those that take their code from what they report are found as literals."""
    found: dict[str, set[int]] = {}
    for cls in error_classes():
        if "self.code" not in inspect.getsource(cls):
            found.setdefault(cls.code, set()).add(cls.status)
    return found


def code_positions(tree: ast.AST) -> dict[str, int]:
    """Function or class name -> place of its parameter ``code`` in a call."""
    places: dict[str, int] = {}
    for node in ast.walk(tree):
        functions = [(node, node)] if isinstance(node, ast.FunctionDef) else []
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


def documented_codes() -> dict[str, str]:
    rows = table_rows(section("Error codes"))
    codes = [row[0].strip("`") for row in rows]
    assert len(codes) == len(set(codes)), "a code stands in the README twice"
    return {code: row[1] for code, row in zip(codes, rows, strict=True)}


def test_literal_codes_are_found() -> None:
    # If the search above broke, the tests below would pass on nothing.
    found = literal_codes()
    assert {"no_effect", "unsupported_bias", "file_ignored", "job_cancelled", "attempts_exhausted"} <= found.keys()


def test_every_error_code_is_in_the_readme() -> None:
    written = documented_codes()
    assert {code: file for code, file in literal_codes().items() if code not in written} == {}
    assert sorted(class_codes().keys() - written.keys()) == []


def test_documented_statuses_are_those_of_the_classes() -> None:
    written = documented_codes()
    wrong = {
        code: (written[code], statuses)
        for code, statuses in class_codes().items()
        if code in written and not statuses <= {int(number) for number in re.findall(r"\d{3}", written[code])}
    }
    assert wrong == {}


def test_every_documented_code_exists() -> None:
    assert sorted(documented_codes().keys() - class_codes().keys() - literal_codes().keys()) == []


def test_every_error_says_what_it_is() -> None:
    assert [cls.__name__ for cls in error_classes() if not inspect.getdoc(cls)] == []


# --- metrics, routes, methods


def metric_rows() -> list[str]:
    rows = []
    for spec in METRICS:
        labels = ", ".join(f"`{label}`" for label in spec.labels)
        rows.append(f"| `{spec.name}` | {spec.kind} | {labels or '–'} | {spec.help} |")
    return rows


def test_every_metric_is_in_the_readme_with_its_labels_and_help() -> None:
    require_rows(metric_rows(), "Metrics")
    assert len(table_rows(section("Metrics"))) == len(metric_rows())


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
    """The OpenAPI document of the real application; nothing is started for it."""
    args = Namespace(model="unused", served_model_name=["base"], max_lora_rank=32)
    return create_app(Settings(), args).openapi()


def routes(document: dict[str, Any]) -> list[str]:
    return [f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods]


def test_every_admin_route_is_in_the_readme_and_no_other(document: dict[str, Any]) -> None:
    written = first_codes(section("Managing adapters: the admin plane"))
    assert sorted(written) == sorted(route for route in routes(document) if "/admin/" in route)


def test_every_other_route_is_in_the_readme(document: dict[str, Any]) -> None:
    paths = [path for path in document["paths"] if not path.startswith("/admin/")]
    assert [path for path in paths if f"`{path}`" not in README] == []


def method_rows() -> list[str]:
    rows = []
    for spec in METHODS.values():
        spaces = ", ".join(f"`{space}`" for space in spec.spaces)
        rows.append(f"| `{spec.name}` | {spec.summary} | {spaces} | {spec.paper or '–'} |")
    return rows


def test_every_merge_method_is_in_the_readme_with_its_spaces_and_paper() -> None:
    require_rows(method_rows(), "Merging")
    assert len(table_rows(section("Merging"))) == len(METHODS)


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
        # 204 says that there is nothing to describe.
        shapes = {code: answer["content"] for code, answer in operation["responses"].items() if code != "204"}
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


def test_flags_of_the_command_line_that_the_readme_names_exist() -> None:
    def walk(command: Any) -> Iterator[str]:
        for parameter in command.params:
            yield from parameter.opts
        for inner in getattr(command, "commands", {}).values():
            yield from walk(inner)

    ours = set(walk(typer.main.get_command(cli)))
    # Those behind `--` are vLLM's, those of curl and docker are theirs.
    others = {"--tensor-parallel-size", "--gpu-memory-utilization", "--target", "--shm-size"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) - ours - others == set()


def test_decisions_are_numbered_and_of_one_form() -> None:
    records = sorted((PACKAGE / "decisions").glob("*.md"))
    assert [int(path.name[:4]) for path in records] == list(range(1, len(records) + 1))
    for path in records:
        text = path.read_text()
        assert text.startswith(f"# {int(path.name[:4])}. "), path.name
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"], path.name
