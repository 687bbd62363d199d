"""The table of what is replaced in vLLM, against vLLM and against the code: no row is idle, and none is missing."""

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from amalgam.engine.cpu import patches
from amalgam.engine.cpu.patch import STAGES, Patch, Stage
from amalgam.engine.cpu.patch_table import PATCHES
from amalgam.engine.cpu.patches import apply, put

ROOT = Path(__file__).parents[4]
SERVER = ROOT / "server"
TABLE = SERVER / "amalgam" / "engine" / "cpu" / "patches.py"

ASSIGNED_IN_THE_ENGINE = {
    # Data of vLLM's objects that our replacement of a method sets because the method's task is to set it.
    "amalgam/engine/cpu/loading.py": {
        "layer.lora_a_stacked", "layer.lora_b_stacked", "weights.lora_a", "weights.lora_b", "weights.scaling",
    },
    "amalgam/engine/own_templates.py": {"chat.?", "asked.failure"},
    # Of the constraint that was made for one request.
    "amalgam/engine/object_arguments.py": {"node.json_schema"},
    # Answers that are on their way to a client.
    "amalgam/engine/whole_messages.py": {
        "message.stop_reason", "message.stop_sequence", "message.content", "message.tool_calls",
        "call.function.arguments", "choice.finish_reason",
    },
    "amalgam/engine/plain_usage.py": {"response.body_iterator"},
    "amalgam/engine/written_answers.py": {"call.make"},
    # Classes of ours, of the standard library and of numba.
    "amalgam/engine/cpu/sources.py": {"made.contents", "self._contents.ranks"},
    "amalgam/engine/cpu/fork_server.py": {
        "process._inheritance", "process._is_spawned", "forkserver._forkserver.ensure_running",
    },
    "amalgam/engine/spawned.py": {"process._secrets"},
    "amalgam/engine/cpu/loops.py": {"numba.config.THREADING_LAYER", "numba.config.NUMBA_NUM_THREADS"},
    # Ray's own place for what its router is to do when nobody takes a request.
    "amalgam/engine/remote/affinity_router.py": {"pending_request.routing_context.should_backoff"},
    "amalgam/engine/residency.py": {"entry.held", "entry.load_s", "entry.failed", "entry.pinned"},
}  # fmt: skip
"""All that code in the engine assigns to beside its own ``self``."""


def owner_of(patch: Patch) -> Any:
    module, _, path = patch.symbol.partition(":")
    owner = import_module(module)
    for part in path.split(".")[:-1]:
        owner = getattr(owner, part)
    return owner


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.symbol)
def test_every_symbol_is_there(patch: Patch) -> None:
    owner = owner_of(patch)
    # Some are fields of objects, which their class sets.
    assert hasattr(owner, patch.name) or re.search(rf"\bself\.{patch.name}\b.* = ", inspect.getsource(owner))


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.symbol)
def test_every_replacement_is_there(patch: Patch) -> None:
    module, _, path = patch.replacement.partition(":")
    found = import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    assert callable(found)
    if patch.stage == "objects":
        assert f'"{patch.symbol}"' in inspect.getsource(import_module(module)), (
            "the code that puts it names another row"
        )
    else:
        assert len(inspect.signature(found).parameters) == 1


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.symbol)
def test_every_test_is_there(patch: Patch) -> None:
    path, _, name = patch.test.partition("::")
    functions = [
        node.name
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert name in functions
    assert name.startswith("test_")


def test_rows_differ_and_stages_are_used() -> None:
    assert len({(patch.symbol, patch.replacement) for patch in PATCHES}) == len(PATCHES)
    once = [patch.symbol for patch in PATCHES if patch.stage != "objects"]
    assert len(set(once)) == len(once)
    assert {patch.stage for patch in PATCHES} == set(get_args(Stage)) == set(STAGES)
    assert all(patch.why and not patch.why.endswith(".") for patch in PATCHES)


def test_every_module_that_puts_something_in_place_has_a_row_for_it() -> None:
    """A symbol that two modules put has two rows."""
    symbols = {patch.symbol for patch in PATCHES if patch.stage == "objects"}
    put_by = {
        (node.value, path.relative_to(SERVER).with_suffix("").as_posix().replace("/", "."))
        for path in sorted(SERVER.rglob("*.py"))
        if path != TABLE and "patches.put(" in path.read_text()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in symbols
    }
    rows = {(patch.symbol, patch.replacement.partition(":")[0]) for patch in PATCHES if patch.stage == "objects"}
    assert put_by == rows


def test_every_stage_is_put_in_place_by_some_code() -> None:
    texts = "\n".join(path.read_text() for path in SERVER.rglob("*.py") if path != TABLE)
    for stage in set(get_args(Stage)) - {"objects"}:
        assert f'patches.apply("{stage}"' in texts


class Owner:
    """Stands in for a class of vLLM's."""

    def reset_lora(self, slot: int) -> str:
        return f"vLLM's {slot}"

    @classmethod
    def get_punica_wrapper(cls) -> str:
        return "vLLM's"


def test_what_is_replaced_stays_replaced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def maker(original: Any) -> Any:
        made.append(original)
        return lambda owner, slot: f"ours, before {original(owner, slot)}"

    monkeypatch.setattr(Owner, "reset_lora", Owner.reset_lora)
    row = Patch("elsewhere:Owner.reset_lora", "layers", "ours:maker", "it is a test", "tests/x.py::test_x")
    monkeypatch.setattr(patches, "PATCHES", (row,))
    monkeypatch.setattr(patches, "import_module", {"ours": SimpleNamespace(maker=maker)}.__getitem__)
    apply("layers", on=Owner)
    apply("layers", on=Owner)
    apply("waits", on=Owner)
    assert len(made) == 1
    assert Owner().reset_lora(3) == "ours, before vLLM's 3"


def test_a_subclass_of_the_platform_is_changed_and_not_its_parent() -> None:
    other: Any = type("Other", (Owner,), {})
    apply("wrapper", on=other)
    assert other.get_punica_wrapper.__func__.__replaces__.endswith("get_punica_wrapper")
    assert Owner.get_punica_wrapper() == "vLLM's"


def test_only_what_the_table_has_can_be_put() -> None:
    client = SimpleNamespace()
    put("vllm.v1.engine.async_llm:AsyncLLM.shutdown", len, on=client)
    assert client.shutdown is len
    for symbol in ("vllm.v1.engine.async_llm:AsyncLLM.abort", "vllm.lora.utils:is_moe_model"):
        with pytest.raises(KeyError):
            put(symbol, len, on=client)


# --- nothing else assigns to what is vLLM's


def names_of_vllm(tree: ast.AST) -> set[str]:
    """Names that stand for something of vLLM: imported, or taken out of something that was."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.asname or a.name.partition(".")[0] for a in node.names if a.name.partition(".")[0] == "vllm"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vllm":
            names |= {a.asname or a.name for a in node.names}
    while True:
        found = names | {
            name.id
            for node in ast.walk(tree)
            for target, value in bindings(node)
            if {root(part) for part in parts(value)} & names
            for name in ast.walk(target)
            if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
        }
        if found == names:
            return names
        names = found


def bindings(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Targets and what they are bound to; calls make new objects, which are not vLLM's symbols, but for ``type``."""
    if isinstance(node, ast.Assign):
        yield from ((target, node.value) for target in node.targets)
    elif isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
        yield node.target, node.iter
    elif isinstance(node, ast.NamedExpr | ast.AnnAssign) and node.value is not None:
        yield node.target, node.value


def parts(value: ast.AST) -> list[ast.AST]:
    return list(value.elts) if isinstance(value, ast.Tuple | ast.List | ast.Set) else [value]


def root(node: ast.AST) -> str | None:
    """The name that an expression of attributes begins with, through ``type(…)``, ``vars(…)`` and subscripts."""
    while True:
        match node:
            case ast.Attribute(value=inner) | ast.Subscript(value=inner) | ast.Starred(value=inner):
                node = inner
            case ast.Call(func=ast.Name(id="type" | "vars" | "getattr"), args=[inner, *_]):
                node = inner
            case ast.Name(id=name):
                return name
            case _:
                return None


def assigned(tree: ast.AST) -> Iterator[ast.AST]:
    """Every place other than a plain name that code assigns to or deletes, ``setattr`` and its like included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            yield node
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in ("setattr", "delattr", "__setattr__", "__delattr__") and node.args:
                yield ast.Attribute(node.args[0], getattr(node.args[1], "value", "?"), ast.Store())


def changes_of_vllm(text: str) -> list[str]:
    tree = ast.parse(text)
    names = names_of_vllm(tree)
    return [ast.unparse(place) for place in assigned(tree) if root(place) in names]


def test_no_other_file_assigns_to_vllms_modules_or_classes() -> None:
    found = {
        path.relative_to(SERVER).as_posix(): changes
        for path in sorted(SERVER.rglob("*.py"))
        if path != TABLE and (changes := changes_of_vllm(path.read_text()))
    }
    assert found == {}


def test_no_text_outside_the_engine_is_a_program_that_imports_vllm() -> None:
    """The contract in pyproject.toml sees import statements, and neither programs in strings nor names of modules."""
    found = [
        path.relative_to(SERVER).as_posix()
        for path in sorted(SERVER.rglob("*.py"))
        if not path.is_relative_to(SERVER / "amalgam" / "engine")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.search(r"(\bimport|\bfrom) (\w+, )*vllm\b|^vllm\.\w+(\.\w+)*$", node.value)
    ]
    assert found == []


def test_in_the_engine_nothing_is_assigned_to_but_what_is_ours() -> None:
    """Objects of vLLM come as arguments too, where their names do not tell whose they are."""
    found: dict[str, set[str]] = {}
    for path in sorted((SERVER / "amalgam" / "engine").rglob("*.py")):
        places = assigned(ast.parse(path.read_text())) if path != TABLE else ()
        names = {ast.unparse(place) for place in places if isinstance(place, ast.Attribute)}
        others = {name for name in names if not re.fullmatch(r"self\.\w+", name)}
        if others:
            found[path.relative_to(SERVER).as_posix()] = others
    assert found == ASSIGNED_IN_THE_ENGINE


@pytest.mark.parametrize(
    "text",
    [
        "import vllm\nvllm.envs.X = 1",
        "from vllm.lora import utils\nutils.is_moe_model = None",
        "from vllm.lora import utils as u\nu.a.b += 1",
        "def f():\n    from vllm.platforms import current_platform\n    type(current_platform).name = 1",
        "from vllm.a import B\nsetattr(B, 'x', 1)",
        "from vllm.a import B\nobject.__setattr__(B, 'x', 1)",
        "from vllm.a import B\ndel B.x",
        "from vllm.a import B, C\nfor cls in (B, C):\n    cls.x = 1",
        "from vllm.a import B\nalias = B.inner\nalias.x: int = 1",
        "from vllm.a import B\nB.x, other = 1, 2",
        "from vllm import a\nvars(a)['x'] = 1",
        "from vllm import a\na.TABLE['x'] = 1",
        "from vllm import a\nif found := getattr(a, 'B'):\n    found.x = 1",
        "from vllm import a\nwith open() as a.x:\n    pass",
    ],
)
def test_the_search_sees_every_way_of_assigning(text: str) -> None:
    assert changes_of_vllm(text)


@pytest.mark.parametrize(
    "text",
    [
        "from vllm.a import B\nx = B()\nself.y = B.z",
        "from vllm.a import B\nfound = {}\nfound['x'] = B",
        "import os\nos.environ['x'] = 'vllm'",
    ],
)
def test_the_search_sees_nothing_where_nothing_is_changed(text: str) -> None:
    assert changes_of_vllm(text) == []
