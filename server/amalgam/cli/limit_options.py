"""The options of the command line that set limits, for keys and tenants alike."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import typer

from amalgam.errors.requests import FieldRefused

RequestsPerMinute = Annotated[int | None, typer.Option(help="requests in a minute", min=1)]
TokensPerMinute = Annotated[int | None, typer.Option(help="tokens in a minute, prompts and answers", min=1)]
TokensPerDay = Annotated[int | None, typer.Option(help="tokens in a day", min=1)]
TokensPerMonth = Annotated[int | None, typer.Option(help="tokens in a month", min=1)]
ConcurrentRequests = Annotated[int | None, typer.Option(help="requests at once", min=1)]
BlendsPerMinute = Annotated[int | None, typer.Option(help="new blends in a minute", min=1)]
StoredBytes = Annotated[int | None, typer.Option(help="bytes of adapters and files", min=1)]
NoLimit = Annotated[
    list[str] | None, typer.Option(help="a limit that is to be none, as tokens-per-minute; may be repeated")
]


_FIELDS: Final = (
    *("requests_per_minute", "tokens_per_minute", "tokens_per_day", "tokens_per_month"),
    *("concurrent_requests", "blends_per_minute", "stored_bytes"),
)
"""The options of a command that takes limits are called so, and so are the fields of `amalgam.domain.tenant.Limits`."""


def given(context: typer.Context) -> dict[str, int]:
    """The limits that a command was given, by field."""
    return {name: context.params[name] for name in _FIELDS if context.params.get(name) is not None}


def changed(
    held: Mapping[str, Any], limits: Mapping[str, int], no_limit: Sequence[str] | None = None
) -> dict[str, Any]:
    """What is ``held``, with ``limits`` in its place, and without those that are to be none. Raises FieldRefused."""
    gone = [name.strip().replace("-", "_") for name in no_limit or ()]
    for name in gone:
        if name not in _FIELDS:
            raise FieldRefused("no-limit", f"{name!r} is no limit. The limits are {', '.join(_FIELDS)}")
    return {**held, **limits} | dict.fromkeys(gone)


def told(limits: Mapping[str, Any]) -> str:
    """Those that are set, in a line."""
    return ", ".join(f"{name} {value}" for name, value in limits.items() if value is not None) or "none"


def told_bytes(stored: Mapping[str, int]) -> str:
    """How much is stored, in units of a thousand, adapters and files together."""
    size = float(stored["adapters"] + stored["files"])
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.4g} TB"
