"""Counts what a checkout is made of: files, lines, functions, imports between packages, the README and the wheel.

python loadtests/code_figures.py [CHECKOUT] [--wheel amalgam-0.1.0-py3-none-any.whl]
"""

import argparse
import ast
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

PACKAGE: Final = "amalgam"
SHORT: Final = 20
"""Lines of a body that is read at a glance."""


def lines_of(path: Path) -> int:
    """How many lines a file has."""
    return len(path.read_text(encoding="utf-8").splitlines())


def bodies(paths: Iterable[Path]) -> Iterator[int]:
    """Lines of every function's body, without its signature and its docstring."""
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first, *others = node.body
                if others and isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                    first = others[0]
                yield (node.end_lineno or first.lineno) - first.lineno + 1


def imports_between(server: Path) -> dict[str, set[str]]:
    """Package -> the other packages, directly below `amalgam`, that a module of it imports anywhere."""
    paths = sorted((server / PACKAGE).rglob("*.py"))
    found: dict[str, set[str]] = {}
    names = {path.stem if path.is_file() else path.name for path in (server / PACKAGE).iterdir()} - {"__init__"}
    for path in paths:
        own = path.relative_to(server / PACKAGE).with_suffix("").parts[0]
        if own.startswith("__"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                targets = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            parts = [target.split(".") for target in targets]
            found.setdefault(own, set()).update(p[1] for p in parts if p[0] == PACKAGE and len(p) > 1)
    return {own: (others & names) - {own} for own, others in found.items()}


def in_circles(imports: Mapping[str, set[str]]) -> list[str]:
    """Packages from which imports lead back to themselves."""
    found = []
    for start in imports:
        reached: set[str] = set()
        ahead = set(imports[start])
        while ahead:
            reached |= ahead
            ahead = set().union(*(imports.get(one, set()) for one in ahead)) - reached
        if start in reached:
            found.append(start)
    return sorted(found)


def figures(checkout: Path) -> dict[str, str]:
    """What there is to say of a checkout, by what it is of."""
    paths = sorted((checkout / "server" / PACKAGE).rglob("*.py"))
    tests = sorted((checkout / "tests").rglob("*.py"))
    counts = [lines_of(path) for path in paths]
    sizes = list(bodies(paths))
    imports = imports_between(checkout / "server")
    readme = checkout / "README.md"
    return {
        "files, lines": f"{len(paths)}, {sum(counts):,}",
        "lines of a file: median, longest": f"{statistics.median(counts):.0f}, {max(counts)}",
        "functions with a body of at most 20 lines": f"{sum(size <= SHORT for size in sizes) / len(sizes):.1%}",
        "longest body": str(max(sizes)),
        "packages that import another, in all": str(sum(map(len, imports.values()))),
        "packages in circles": ", ".join(in_circles(imports)) or "none",
        "README: lines, bytes": f"{lines_of(readme)}, {readme.stat().st_size:,}",
        "tests: files, lines": f"{len(tests)}, {sum(map(lines_of, tests)):,}",
    }


def main() -> None:
    """Print the figures, and the size of a wheel where one is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", nargs="?", type=Path, default=Path(__file__).resolve().parent.parent)
    parser.add_argument("--wheel", type=Path)
    given = parser.parse_args()
    for name, value in figures(given.checkout).items():
        print(f"{name}: {value}")
    if given.wheel is not None:
        print(f"wheel: {given.wheel.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
