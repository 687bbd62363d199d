"""Take the console's libraries out of their npm packages.

    python deploy/vendor_console.py FOLDER
    python deploy/vendor_console.py --check

FOLDER holds the packages as ``npm pack NAME@VERSION`` leaves them. Modules that import each other by a package's name
are written with relative names, because a page without inline scripts cannot say what such names mean. Versions,
licences and digests go into ``vendor/table.json``; ``--check`` compares the files with it and writes nothing.
"""

import argparse
import hashlib
import json
import re
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

VENDOR: Final = Path(__file__).resolve().parent.parent / "server" / "amalgam" / "console" / "vendor"
TABLE: Final = VENDOR / "table.json"
LICENCES: Final = VENDOR / "LICENCES.txt"
"""The packages' own texts, one after another."""


@dataclass(frozen=True)
class Vendored:
    """One file of one package.

    Attributes:
        package: its name in the registry.
        version: exactly.
        inside: path below ``package/`` in its archive.
        written: name below ``vendor/``.
    """

    package: str
    version: str
    inside: str
    written: str

    @property
    def archive(self) -> str:
        """The name that npm gives the archive."""
        return f"{self.package.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


FILES: Final = (
    Vendored("preact", "11.2.0", "dist/preact.mjs", "preact.js"),
    Vendored("preact", "11.2.0", "hooks/dist/hooks.mjs", "hooks.js"),
    Vendored("htm", "3.1.1", "dist/htm.module.js", "htm.js"),
    Vendored("@preact/signals-core", "1.14.5", "dist/signals-core.module.js", "signals-core.js"),
    Vendored("@preact/signals", "2.11.4", "dist/signals.module.js", "signals.js"),
    Vendored("echarts", "6.1.0", "dist/echarts.common.min.js", "echarts.js"),
    Vendored("swagger-ui-dist", "5.35.0", "swagger-ui-bundle.js", "swagger-ui.js"),
    Vendored("swagger-ui-dist", "5.35.0", "swagger-ui.css", "swagger-ui.css"),
)
_NAMES: Final = {
    "preact": "./preact.js",
    "preact/hooks": "./hooks.js",
    "@preact/signals-core": "./signals-core.js",
}
_IMPORT: Final = re.compile(r'\bfrom\s*"([^".][^"]*)"')
_MAP: Final = re.compile(r"\n?(?://|/\*)# sourceMappingURL=\S+(?: \*/)?\s*$")


def rewritten(text: str) -> str:
    """The module with relative names, and without a map that is not there."""
    return _MAP.sub("\n", _IMPORT.sub(lambda match: f'from"{_NAMES.get(match[1], match[1])}"', text))


def write(packages: Path) -> None:
    """All files, and the table."""
    rows, licences = [], {}
    VENDOR.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        with tarfile.open(packages / file.archive) as archive:
            text = rewritten(_text(archive, file.inside))
            licence = json.loads(_text(archive, "package.json"))["license"]
            # Apache's licence asks that a package's notice goes along with it.
            texts = [_text(archive, name).strip() for name in ("LICENSE", "NOTICE") if _has(archive, name)]
            licences[file.package] = "\n\n".join([f"{file.package} {file.version} ({licence})", *texts]) + "\n"
        (VENDOR / file.written).write_text(text)
        row = {"file": file.written, "package": file.package, "version": file.version, "licence": licence}
        rows.append(row | {"sha256": digest(VENDOR / file.written)})
    TABLE.write_text(json.dumps(rows, indent=1) + "\n")
    LICENCES.write_text(f"\n{'-' * 80}\n\n".join(licences.values()))


def _has(archive: tarfile.TarFile, name: str) -> bool:
    return f"package/{name}" in archive.getnames()


def _text(archive: tarfile.TarFile, name: str) -> str:
    member = archive.extractfile(f"package/{name}")
    assert member is not None, f"{name} is no file"
    return member.read().decode()


def digest(path: Path) -> str:
    """SHA-256, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differences() -> list[str]:
    """What the folder and its table do not agree on."""
    table = {row["file"]: row["sha256"] for row in json.loads(TABLE.read_text())}
    there = {path.name for path in VENDOR.iterdir()} - {TABLE.name, LICENCES.name}
    wrong = [f"{name} is not in the table" for name in sorted(there - table.keys())]
    for name, expected in table.items():
        if name not in there:
            wrong.append(f"{name} is missing")
        elif digest(VENDOR / name) != expected:
            wrong.append(f"{name} has been changed")
    return wrong


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, nargs="?", help="folder with the packages")
    parser.add_argument("--check", action="store_true", help="write nothing; say what differs")
    given = parser.parse_args()
    if given.check:
        wrong = differences()
        print("\n".join(wrong) or "the vendored files are those of the table")
        return 1 if wrong else 0
    if given.packages is None:
        parser.error("name the folder with the packages")
    write(given.packages)
    return 0


if __name__ == "__main__":
    sys.exit(main())
