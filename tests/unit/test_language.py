"""Terms are those of the field, log lines events with fields; what the walks name exists."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "server" / "amalgam"
FOLDERS = ("server", "tests", "loadtests", "docs", "deploy", "adapters_store")
ENDINGS = {".py", ".md", ".toml", ".yaml", ".yml", ".sh", ".json"}

BANNED = re.compile(
    r"(?<![a-zA-Z])(?:houses?|doors?|shops?|storeys?|rigs?|rooms|landlords?|handed|hands)(?![a-zA-Z])"
    r"|(?:House|Door|Shop|Rig|Room|Hand)s?(?![a-z])"
    r"|(?<!ware)house|landlord"
    r"|(?<![A-Z])(?:HOUSES?|DOORS?|SHOPS?|HANDED|HANDS|LANDLORDS?)(?![A-Z])",
    re.ASCII,
)
"""Metaphors that once stood for what has a term: a server, a check, an application, memory, the factors in a slot."""
CONTENT = ("tests/clients/recorded/", "tests/clients/javascript/", "server/amalgam_demo/data/", "adapters_store/demo/")
"""What clients sent and what models are trained on, word for word."""
CONTENT_LINES = {
    "tests/unit/test_language.py": re.compile(r"houses\?|House\|Door|house\|landlord|HOUSES|TheRoom|SLOT_HANDS"),
    "tests/unit/amalgam_demo": re.compile(""),
}
"""Lines of other files that are content likewise, by the beginning of the path."""


def texts() -> Iterator[tuple[str, str]]:
    """Path and text of every file that somebody wrote, as git knows them."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split(
        "\n"
    )
    found = listed if any(listed) else [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*")]
    for name in found:
        path = ROOT / name
        is_ours = name.split("/")[0] in FOLDERS or name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile")
        if is_ours and path.suffix in ENDINGS | {""} and path.is_file() and not name.startswith(CONTENT):
            yield name, path.read_text(encoding="utf-8", errors="replace")


def is_content(name: str, line: str) -> bool:
    return any(name.startswith(start) and lines.search(line) for start, lines in CONTENT_LINES.items())


def test_metaphors_do_not_come_back() -> None:
    read = list(texts())
    assert len(read) > 500, "the search found too few files to mean anything"
    found = [
        f"{name}:{number}: {line.strip()[:120]}"
        for name, text in read
        for number, line in enumerate(text.splitlines(), 1)
        if BANNED.search(line) and not is_content(name, line)
    ]
    assert found == []
    assert [name for name, _ in read if BANNED.search(name)] == []


@pytest.mark.parametrize(
    "text",
    ["the house", "open_door", "test_body_doors.py", "SlotHands", "def house(", "handed to", "TheRoom", "SLOT_HANDS"],
)
def test_a_metaphor_is_seen_also_within_a_name(text: str) -> None:
    assert BANNED.search(text)


@pytest.mark.parametrize("text", ["by hand", "beforehand", "handle", "room for it", "a threshold", "right", "shopping"])
def test_other_terms_are_none(text: str) -> None:
    assert not BANNED.search(text)


# --- the log

EVENT = re.compile(r"[a-z]+(?:_[a-z]+)+(?: [a-z_]+=[^=]+)*")
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}


def log_calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Place, level and call of every line that the server logs."""
    for path in sorted((ROOT / "server").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id.lstrip("_").startswith("log")
                and node.func.attr in LEVELS
            ):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node.func.attr, node


def event_text(call: ast.Call) -> str:
    first = call.args[0]
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""


def test_every_line_of_the_log_is_an_event_with_fields() -> None:
    calls = list(log_calls())
    assert len(calls) > 50
    wrong = [(place, event_text(call)) for place, _, call in calls if not EVENT.fullmatch(event_text(call))]
    assert wrong == []


def test_the_manual_lists_every_event_that_is_an_error() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    section = page.split("## Events in the log", 1)[1].split("\n## ", 1)[0]
    listed = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    logged = {event_text(call).split(" ")[0] for _, level, call in log_calls() if level in ("error", "exception")}
    assert len(listed) == len(set(listed))
    assert set(listed) == logged
    others = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", section)) - set(listed) - {"exit_code"}
    assert others <= {event_text(call).split(" ")[0] for _, _, call in log_calls()}


def test_an_event_has_the_fields_that_the_manual_names() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    named = {
        event: re.findall(r"`(\w+)`", fields)
        for event, fields in re.findall(r"^\| `(\w+)` \|[^|]*?\(((?:`\w+`(?:, )?)+)\)", page, re.MULTILINE)
    }
    assert len(named) > 5
    texts = [(place, event_text(call)) for place, _, call in log_calls()]
    lacking = [
        (place, text, field)
        for place, text in texts
        for field in named.get(text.split(" ")[0], ())
        if f" {field}=" not in text
    ]
    assert lacking == []


# --- walks

STEP = re.compile(r"`((?:[\w-]+/)*[\w-]+\.py)(?::([\w.]+))?`")


def section(title: str) -> str:
    page = (ROOT / "docs" / "architecture.md").read_text()
    return page.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def walks() -> str:
    return section("Three walks")


def names_in(path: Path) -> set[str]:
    """What a module defines: functions, classes, methods by ``Class.method``, and its constants."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = (one.name for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef))
            found |= {f"{node.name}.{name}" for name in inner}
        if isinstance(node, ast.AnnAssign | ast.Assign):
            targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize(("title", "least"), [("Three walks", 60), ("Where it is decided", 40)])
def test_every_file_and_function_that_the_architecture_names_exists(title: str, least: int) -> None:
    steps = STEP.findall(section(title))
    assert len(steps) > least
    missing = []
    for file, name in steps:
        path = (ROOT if file.startswith("tests/") else PACKAGE) / file
        if not path.is_file() or (name and name not in names_in(path)):
            missing.append((file, name))
    assert missing == []


def test_every_step_of_the_walks_says_where_it_is() -> None:
    walk = re.sub(r"\n   +", " ", walks())
    steps = re.findall(r"^\d+\. (.*)$", walk, re.MULTILINE)
    assert len(steps) > 30
    # The last but one of the third is a command.
    assert [step for step in steps if not STEP.search(step) and "make docs" not in step] == []
