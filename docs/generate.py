"""Write the tables of the manual that the code knows: errors, settings, metrics, routes, methods, patches of vLLM.

    python docs/generate.py            rewrite them in place; `make docs` does this
    python docs/generate.py --check    change nothing; exit 1 and name the pages that are out of date

A page is written by hand but for what stands between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``, where NAME is
one of `TABLES`. Everything comes from the package itself, so a class, a field or a row that is added there needs no
second place here.
"""

import importlib
import inspect
import pkgutil
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic.fields import FieldInfo

import amalgam.errors
from amalgam.api.access import access_of
from amalgam.api.fields.by_endpoint import FIELDS, HONOURED
from amalgam.api.fields.past_blocks import BLOCKS
from amalgam.api.fields.past_items import ITEMS
from amalgam.api.fields.table import FieldSpec
from amalgam.api.inference.request_models import bounds_schema
from amalgam.app import create_app
from amalgam.engine.cpu.patch import STAGES
from amalgam.engine.cpu.patch_table import PATCHES
from amalgam.errors import AmalgamError
from amalgam.errors.code_table import ALSO_FINDINGS, FINDINGS, JOB_CODES, CodeSpec
from amalgam.merge.methods import METHODS
from amalgam.settings import Settings, subsystems, variable
from amalgam.settings.sources import OTHER_VARIABLES
from amalgam.telemetry.metric_table import METRICS

DOCS: Final = Path(__file__).resolve().parent
NEXT_STEP: Final = "Next step: "


# --- errors


@dataclass(frozen=True)
class CodeRow:
    """One error code as the page shows it."""

    code: str
    statuses: frozenset[int]
    means: str
    next_step: str

    def __str__(self) -> str:
        """The row of the table, in Markdown."""
        statuses = ", ".join(str(status) for status in sorted(self.statuses)) or "–"
        return f"| `{self.code}` | {statuses} | {self.means} | {self.next_step} |"


def error_classes() -> list[type[AmalgamError]]:
    """Every error class of the package, parents first."""
    for module in pkgutil.iter_modules(amalgam.errors.__path__, "amalgam.errors."):
        importlib.import_module(module.name)

    def walk(cls: type[AmalgamError]) -> Iterator[type[AmalgamError]]:
        yield cls
        for inner in cls.__subclasses__():
            yield from walk(inner)

    return [cls for cls in dict.fromkeys(walk(AmalgamError)) if cls.__module__.startswith("amalgam.")]


def declares_its_code(cls: type[AmalgamError]) -> bool:
    """Whether the class has one code, rather than that of what it reports."""
    constructors = [
        vars(one)["__init__"] for one in cls.__mro__ if issubclass(one, AmalgamError) and "__init__" in vars(one)
    ]
    return not any("code" in constructor.__code__.co_names for constructor in constructors)


def class_codes() -> dict[str, set[int]]:
    """Code -> statuses, of every class that declares its code."""
    found: dict[str, set[int]] = {}
    for cls in filter(declares_its_code, error_classes()):
        found.setdefault(cls.code, set()).add(cls.status)
    return found


def told(cls: type[AmalgamError]) -> tuple[str, str] | None:
    """What the class' own docstring says it means, and its next step; None where it names no next step."""
    paragraphs = inspect.cleandoc(cls.__doc__ or "").split("\n\n")
    steps = [paragraph for paragraph in paragraphs if paragraph.startswith(NEXT_STEP)]
    if not steps:
        return None
    means, step = (" ".join(text.split()).removesuffix(".").replace("``", "`") for text in (paragraphs[0], steps[0]))
    return means, step.removeprefix(NEXT_STEP)


def row_of(spec: CodeSpec) -> CodeRow:
    """The row of a code that no class declares."""
    return CodeRow(spec.code, frozenset(spec.statuses), spec.means, spec.next_step)


def class_rows(module: str) -> list[CodeRow]:
    """The rows of the classes of one module that say a next step, in the order they are written."""
    statuses, rows = class_codes(), []
    classes = [cls for cls in error_classes() if cls.__module__ == module and declares_its_code(cls)]
    for cls in sorted(classes, key=lambda cls: inspect.getsourcelines(cls)[1]):
        text = told(cls)
        if text is not None:
            also = {422} if cls.code in ALSO_FINDINGS else set()
            rows.append(CodeRow(cls.code, frozenset(statuses[cls.code] | also), *text))
    return rows


@dataclass(frozen=True)
class CodeSection:
    """The codes of one module of errors."""

    heading: str
    module: str
    """Below ``errors/``."""
    rows: list[CodeRow]

    def __str__(self) -> str:
        """The section of the page, in Markdown."""
        head = "| code | status | means | next step |\n|---|---|---|---|"
        return f"## {self.heading}\n\nIn `errors/{self.module}.py`.\n\n{head}\n" + "\n".join(map(str, self.rows))


def error_sections() -> list[CodeSection]:
    """A section for each module of errors that declares codes."""
    names = [module.name for module in pkgutil.iter_modules(amalgam.errors.__path__)]
    sections = [CodeSection("General", "__init__", class_rows("amalgam.errors"))]
    for name in names:
        text = inspect.getdoc(importlib.import_module(f"amalgam.errors.{name}")) or name
        heading = text.partition("\n")[0].removesuffix(".").removeprefix("Errors of ").replace("``", "`")
        sections.append(CodeSection(heading[0].upper() + heading[1:], name, class_rows(f"amalgam.errors.{name}")))
    sections.append(CodeSection("Findings of a check", "code_table", [row_of(spec) for spec in FINDINGS]))
    sections.append(CodeSection("Jobs that end without a version", "code_table", [row_of(spec) for spec in JOB_CODES]))
    return [section for section in sections if section.rows]


def errors_table() -> str:
    """A table for each module of errors."""
    return "\n\n".join(map(str, error_sections()))


# --- settings, metrics, methods


def shown_default(value: Any) -> str:
    """A default as it would be written into the environment."""
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


def settings_table() -> str:
    """A table for each subsystem, and one of the variables that are no settings."""
    parts = [_settings_rows({"config": Settings.model_fields["config"]})]
    for table, group in subsystems().items():
        text = inspect.cleandoc(group.__doc__ or "").replace("``", "`")
        parts.append(f"## `[{table}]`\n\n{text}\n\n{_settings_rows(group.model_fields)}")
    others = "\n".join(f"| `{name}` | {text} |" for name, text in OTHER_VARIABLES.items())
    parts.append(f"## Variables that are no settings\n\n| variable | meaning |\n|---|---|\n{others}")
    return "\n\n".join(parts)


def _settings_rows(fields: Mapping[str, FieldInfo]) -> str:
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in fields.items():
        default = field.get_default(call_default_factory=True)
        rows.append(f"| `{variable(name)}` | {shown_default(default)} | {field.description} |")
    return "\n".join(rows)


def metrics_table() -> str:
    """A row for each metric of ours."""
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for spec in METRICS:
        labels = ", ".join(f"`{label}`" for label in spec.labels)
        rows.append(f"| `{spec.name}` | {spec.kind} | {labels or '–'} | {spec.help} |")
    return "\n".join(rows)


def methods_table() -> str:
    """A row for each merge method."""
    rows = ["| method | result | spaces | paper |", "|---|---|---|---|"]
    for spec in METHODS.values():
        spaces = ", ".join(f"`{space}`" for space in spec.spaces)
        rows.append(f"| `{spec.name}` | {spec.summary} | {spaces} | {spec.paper or '–'} |")
    return "\n".join(rows)


def patches_table() -> str:
    """A row for each symbol of vLLM that is replaced, by the time when it is."""
    parts = []
    for stage, when in STAGES.items():
        rows = ["| symbol of vLLM | replacement | because | test |", "|---|---|---|---|"]
        for patch in PATCHES:
            if patch.stage == stage:
                ours = patch.replacement.removeprefix("amalgam.")
                rows.append(f"| `{patch.symbol}` | `{ours}` | {patch.why} | `{patch.test.partition('::')[0]}` |")
        parts.append(f"Stage `{stage}`: {when}.\n\n" + "\n".join(rows))
    return "\n\n".join(parts)


# --- routes


def bare_app() -> FastAPI:
    """The real application; nothing is started for its document."""
    args = Namespace(model="unused", served_model_name=["base"], max_lora_rank=32)
    return create_app(Settings(), args)


def openapi_document() -> dict[str, Any]:
    """The OpenAPI document of the real application."""
    return bare_app().openapi()


def roles_of(app: FastAPI) -> dict[tuple[str, str], str]:
    """Whom each route answers, as its marker says."""
    found: dict[tuple[str, str], str] = {}
    for route in app.routes:
        assert isinstance(route, APIRoute)
        access = access_of(route)
        roles = "everybody" if access is None or access.roles is None else ", ".join(sorted(access.roles))
        found |= {(method.lower(), route.path_format): roles for method in route.methods}
    return found


def route_row(method: str, path: str, operation: dict[str, Any], roles: str) -> str:
    """One row: the route, what it does, whom it answers, and what may be added to it."""
    added = [
        f"`{parameter['name']}`"
        for parameter in operation.get("parameters", ())
        if parameter["in"] in ("query", "header")
    ]
    return f"| `{method.upper()} {path}` | {operation['summary']} | {roles} | {', '.join(added) or '–'} |"


def routes_table() -> str:
    """A table for each group of routes."""
    groups: dict[str, list[str]] = {}
    app = bare_app()
    roles = roles_of(app)
    for path, methods in app.openapi()["paths"].items():
        for method, operation in methods.items():
            row = route_row(method, path, operation, roles[method, path])
            groups.setdefault(operation["tags"][0], []).append(row)
    head = "| route | does | for | query and headers |\n|---|---|---|---|"
    return "\n\n".join(f"## {group}\n\n{head}\n" + "\n".join(rows) for group, rows in groups.items())


# --- pages

# --- fields


def fields_table() -> str:
    """A table for each endpoint of what it honours, and one for each of the other rules."""
    parts = []
    for endpoint, table in HONOURED.items():
        rows = "\n".join(f"| `{name}` | {_bounds(spec)} |" for name, spec in sorted(table.items()))
        parts.append(f"## Honoured by `{endpoint}`\n\n| field | bounds |\n|---|---|\n{rows}")
    for rule, heading, column in (
        ("refused", "Refused", "next step"),
        ("without effect", "Taken without effect", "because"),
    ):
        says: dict[tuple[str, str], list[str]] = {}
        for endpoint, table in FIELDS.items():
            for name, spec in table.items():
                if spec.rule == rule:
                    says.setdefault((name, spec.says), []).append(endpoint)
        rows = "\n".join(f"| `{name}` | {where(ends)} | {text} |" for (name, text), ends in sorted(says.items()))
        parts.append(f"## {heading}\n\n| field | where | {column} |\n|---|---|---|\n{rows}")
    return "\n\n".join(parts)


def where(endpoints: list[str]) -> str:
    """Endpoints by name; most of them by those that are missing."""
    missing = [f"`{one}`" for one in FIELDS if one not in endpoints]
    if not missing:
        return "everywhere"
    return f"everywhere but {', '.join(missing)}" if len(missing) <= 3 else ", ".join(f"`{e}`" for e in endpoints)


def _bounds(spec: FieldSpec) -> str:
    """A field's bounds in words, from its JSON schema and its note."""
    schema = bounds_schema(spec)
    shapes = schema.pop("anyOf", None) or [schema]
    kind = " or ".join(dict.fromkeys(shape.get("type", "any") for shape in shapes))
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None:
        kind += f", {low} to {high}"
    for key, unit in (("maxLength", "characters"), ("maxItems", "entries")):
        if key in schema:
            kind += f", at most {schema[key]} {unit}"
    return f"{kind}; {spec.says}" if spec.says else kind


def turns_table(first: str, rows: Mapping[str, tuple[str, str]]) -> str:
    """What becomes of parts of a conversation, by their type: first what is read, and the rest as it is written."""
    read = [f"`{kind}`" for kind, (rule, says) in rows.items() if rule == "read" and not says]
    lines = [f"| {first} | becomes | how, or why |", "|---|---|---|", f"| {', '.join(read)} | read | |"]
    told = {kind: row for kind, row in rows.items() if row[0] != "read" or row[1]}
    lines += [f"| `{kind}` | {rule} | {says} |" for kind, (rule, says) in told.items()]
    return "\n".join(lines)


def items_table() -> str:
    """Items of the Responses dialect."""
    return turns_table("item", {kind: (spec.rule, spec.says) for kind, spec in ITEMS.items()})


def blocks_table() -> str:
    """Blocks of Anthropic's dialect."""
    return turns_table("block", BLOCKS)


TABLES: Final[dict[str, Callable[[], str]]] = {
    "errors": errors_table,
    "settings": settings_table,
    "metrics": metrics_table,
    "routes": routes_table,
    "methods": methods_table,
    "fields": fields_table,
    "patches": patches_table,
    "items": items_table,
    "blocks": blocks_table,
}
BETWEEN: Final = re.compile(r"(<!-- (\w+): begin -->\n)(.*?)(<!-- \2: end -->)", re.DOTALL)


def fresh(text: str) -> str:
    """The page with every table between markers made anew.

    Raises:
        KeyError: a marker of an unknown name.
    """
    return BETWEEN.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[4]}", text)


def pages() -> list[Path]:
    """The pages that hold a table."""
    return [path for path in sorted(DOCS.glob("*.md")) if BETWEEN.search(path.read_text())]


def main() -> None:
    """Rewrite the pages, or name those that are out of date."""
    if sys.argv[1:] not in ([], ["--check"]):
        raise SystemExit(__doc__)
    old = [path for path in pages() if path.read_text() != fresh(path.read_text())]
    if sys.argv[1:]:
        if old:
            raise SystemExit(f"Out of date: {', '.join(path.name for path in old)}. Run `make docs`.")
        return
    for path in old:
        path.write_text(fresh(path.read_text()))
        print(f"wrote {path.relative_to(DOCS.parent)}")


if __name__ == "__main__":
    main()
