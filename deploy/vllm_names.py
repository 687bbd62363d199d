"""Says which names that Amalgam imports from vLLM a release lacks, from its unpacked wheel; nothing is imported.

Usage: python deploy/vllm_names.py FOLDER, where FOLDER holds the package folder ``vllm`` of the release. Before another
release is pinned: unpack its wheel (``pip download --no-deps``, ``unzip``) and run this; what it names has moved. Of a
name that is imported with another place to look for it, in a ``try``, one place has to be there.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parents[1] / "server" / "amalgam"


class Imported(NamedTuple):
    """A name of vLLM's, or a module where ``name`` is empty, and who imports it."""

    module: str
    name: str
    by: str


def alternatives(package: Path) -> Iterator[list[Imported]]:
    """What the modules below ``package`` import from vLLM; of each list one has to be there."""
    for path in sorted(package.rglob("*.py")):
        yield from _of(ast.parse(path.read_text()), str(path.relative_to(package)))


def _of(node: ast.AST, by: str) -> Iterator[list[Imported]]:
    if isinstance(node, ast.Try) and any(_catches_imports(handler) for handler in node.handlers):
        tried = [one for part in node.body for names in _of(part, by) for one in names]
        instead = [
            one for handler in node.handlers for part in handler.body for names in _of(part, by) for one in names
        ]
        for one in tried:
            yield [one, *(other for other in instead if other.name == one.name)]
        return
    if isinstance(node, ast.ImportFrom) and node.level == 0 and _is_vllm(node.module):
        yield from ([Imported(str(node.module), alias.name, by)] for alias in node.names)
    elif isinstance(node, ast.Import):
        yield from ([Imported(alias.name, "", by)] for alias in node.names if _is_vllm(alias.name))
    for child in ast.iter_child_nodes(node):
        yield from _of(child, by)


def _catches_imports(handler: ast.ExceptHandler) -> bool:
    return isinstance(handler.type, ast.Name) and handler.type.id in ("ImportError", "ModuleNotFoundError")


def _is_vllm(module: str | None) -> bool:
    return module is not None and module.split(".")[0] == "vllm"


def has(folder: Path, module: str, name: str) -> bool:
    """Whether the release in ``folder`` has the module, and the name in it."""
    path = folder.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not source.is_file():
        return False
    if not name or (path / name).is_dir() or (path / f"{name}.py").is_file():
        return True
    return name in _defined(ast.parse(source.read_text()).body)


def _defined(body: list[ast.stmt]) -> set[str]:
    """What a module's statements define or import, those under conditions included, and what it loads when asked."""
    found: set[str] = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        else:
            for inner in ast.walk(node):
                if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                    found.add(inner.id)
                elif isinstance(inner, ast.alias):
                    found.add(inner.asname or inner.name)
                elif isinstance(inner, ast.Dict):
                    # Tables of names that `__getattr__` loads.
                    found |= {str(key.value) for key in inner.keys if isinstance(key, ast.Constant)}
    if any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in body):
        found |= {
            n.value for stmt in body for n in ast.walk(stmt) if isinstance(n, ast.Constant) and isinstance(n.value, str)
        }
    return found


def missing(folder: Path, package: Path = PACKAGE) -> list[Imported]:
    """What ``package`` imports that the release in ``folder`` has in no place that is looked at."""
    return [names[0] for names in alternatives(package) if not any(has(folder, one.module, one.name) for one in names)]


def main() -> None:
    """Print what is missing; status 1 where something is."""
    absent = missing(Path(sys.argv[1]))
    for one in absent:
        print(f"{one.module}: {one.name or 'the module itself'} (imported by {one.by})")
    raise SystemExit(1 if absent else 0)


if __name__ == "__main__":
    main()
