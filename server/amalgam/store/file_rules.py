"""Which files an adapter folder may hold, and which make the whole folder refused."""

from pathlib import PurePosixPath
from typing import Final

from amalgam.errors.findings import Finding

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
LINEAGE_FILE: Final = "lineage.json"
CARD_FILE: Final = "README.md"

CONTENT_FILES: Final = (CONFIG_FILE, WEIGHTS_FILE)
"""What an adapter is: these two decide its digest."""

KEPT_FILES: Final = (*CONTENT_FILES, LINEAGE_FILE, CARD_FILE)
"""What is stored; everything else is left behind."""

MAX_TEXT_BYTES: Final = 4 << 20
"""Limit on each stored file but the weights."""

_PICKLE_SUFFIXES: Final = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"})
_CODE_SUFFIXES: Final = frozenset({".py", ".pyc", ".pyd", ".so", ".dll", ".dylib"})
_ZIP_MAGIC: Final = b"PK\x03\x04"
_PICKLE_MAGIC: Final = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))

MAGIC_BYTES: Final = 4
"""How much of a file's beginning `looks_pickled` wants to see."""


def refusal(name: str, beginning: bytes = b"") -> Finding | None:
    """Why a file called ``name`` that begins with ``beginning`` makes its folder refused; None where it does not.

    Of a file called `WEIGHTS_FILE` the beginning proves nothing: a header's length may begin like a pickle.
    """
    suffix = PurePosixPath(name.lower()).suffix
    if suffix in _PICKLE_SUFFIXES:
        return unsafe(name, "is a pickle by its name, and loading one runs code. Save the adapter as safetensors")
    if suffix in _CODE_SUFFIXES:
        return unsafe(name, "is code, which an adapter cannot bring along. Remove it")
    if name != WEIGHTS_FILE and looks_pickled(beginning):
        return unsafe(name, "is a pickle by its first bytes, whatever its name. Remove it")
    return None


def looks_pickled(beginning: bytes) -> bool:
    """Whether a file begins as pickles do, bare (protocol 2 to 5) or in a zip archive as torch writes them."""
    return beginning.startswith((_ZIP_MAGIC, *_PICKLE_MAGIC))


def ignored(name: str) -> Finding:
    """The warning about a file that is not stored."""
    return Finding(
        code="file_ignored",
        severity="warning",
        message=f"{shown(name)} is not part of an adapter and was left out; the base model's tokenizer serves.",
    )


def unsafe(name: str, reason: str) -> Finding:
    """The error about a file that must not come in at all."""
    return Finding(code="unsafe_format", message=f"{shown(name)} {reason}.")


def shown(name: str) -> str:
    """``name`` as it may stand in a message: quoted, and not at any length."""
    return repr(name if len(name) <= 128 else name[:128] + "…")
