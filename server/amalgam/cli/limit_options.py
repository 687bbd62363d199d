"""The options of the command line that set limits, for keys and tenants alike."""

from typing import Annotated, Any, Final

import typer

RequestsPerMinute = Annotated[int | None, typer.Option(help="requests in a minute", min=1)]
TokensPerMinute = Annotated[int | None, typer.Option(help="tokens in a minute, prompts and answers", min=1)]
TokensPerDay = Annotated[int | None, typer.Option(help="tokens in a day", min=1)]
TokensPerMonth = Annotated[int | None, typer.Option(help="tokens in a month", min=1)]
ConcurrentRequests = Annotated[int | None, typer.Option(help="requests at once", min=1)]
BlendsPerMinute = Annotated[int | None, typer.Option(help="new blends in a minute", min=1)]


_FIELDS: Final = (
    *("requests_per_minute", "tokens_per_minute", "tokens_per_day", "tokens_per_month"),
    *("concurrent_requests", "blends_per_minute"),
)
"""As the options of a command are called that takes them, and the fields of `amalgam.domain.tenant.Limits`."""


def given(context: typer.Context) -> dict[str, Any]:
    """The limits that a command was given, as the field ``limits`` of a body; nothing where none was."""
    found = {name: context.params[name] for name in _FIELDS if context.params[name] is not None}
    return {"limits": found} if found else {}
