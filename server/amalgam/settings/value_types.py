"""Types of the values of settings: how a text is read, and what is taken."""

from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, StringConstraints

from amalgam.merge.methods import METHODS


def default_cache() -> Path:
    """Where models are kept that are fetched or unpacked."""
    return Path.home() / ".cache" / "amalgam"


def _split(value: Any) -> Any:
    """Read a text with commas as a tuple."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _without_end(value: Any) -> Any:
    """Take the slash from the end of a prefix, which means the same without."""
    return value.rstrip("/") if isinstance(value, str) else value


def _known_method(name: str) -> str:
    if name not in METHODS:
        raise ValueError(f"{name!r} is no merge method; known are {', '.join(METHODS)}")
    return name


Listed: Final = BeforeValidator(_split)
Origin = Annotated[str, StringConstraints(pattern=r"^(\*|[a-z][a-z0-9+.-]*://[^/\s,]+)$")]
Prefix = Annotated[str, BeforeValidator(_without_end), StringConstraints(pattern=r"^(/[A-Za-z0-9._~-]+)*$")]
Method = Annotated[str, AfterValidator(_known_method)]
Host = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", to_lower=True)]
ObjectPrefix = Annotated[
    str,
    StringConstraints(pattern=r"^((s3|gs)://|az://[\w-]+/)[A-Za-z0-9_][\w.=+@-]*(/[A-Za-z0-9_][\w.=+@-]*)*/?$"),
]
