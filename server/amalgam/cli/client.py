"""How the command line talks to a running server: one client, errors in the server's own words."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console

DEFAULT_URL = "http://127.0.0.1:8000"
Url = Annotated[str, typer.Option(help="the server", envvar="AMALGAM_URL")]
Key = Annotated[str | None, typer.Option(help="admin key", envvar="AMALGAM_ADMIN_KEY", show_default=False)]

CONSOLE = Console(highlight=False)
ERRORS = Console(stderr=True, highlight=False)


@contextmanager
def client(url: str, key: str | None, timeout_s: float = 120.0) -> Iterator[httpx.Client]:
    """A client for the server at ``url``; ends the program with a sentence where nobody answers there."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=timeout_s, trust_env=False) as session:
            yield session
    except httpx.TransportError as error:
        ERRORS.print(f"[red]No answer from {url}[/red] ({type(error).__name__}). Start it with `amalgam serve`.")
        raise typer.Exit(2) from None


def every_page(session: httpx.Client, path: str, search: str) -> Iterator[dict[str, Any]]:
    """The entries of a listing whose names contain ``search``, from all of its pages."""
    cursor: str | None = None
    while True:
        query: dict[str, str | int] = {"search": search, "limit": 200}
        if cursor is not None:
            query["cursor"] = cursor
        page = answer(session.get(path, params=query))
        yield from page["data"]
        cursor = page["next_cursor"]
        if cursor is None:
            return


def answer(response: httpx.Response) -> Any:
    """The JSON of a good answer; ends the program with the server's message otherwise."""
    try:
        body = response.json()
    except ValueError:
        body = {}
    if response.is_success:
        return body
    error = body.get("error", {})
    ERRORS.print(
        f"[red]{error.get('code', response.status_code)}[/red]: {error.get('message', response.reason_phrase)}"
    )
    for finding in error.get("findings", ()):
        ERRORS.print(f"  {finding['severity']}: {finding['code']}: {finding['message']}", markup=False)
    raise typer.Exit(1)
