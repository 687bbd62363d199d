"""How the command line talks to a running server: one client, errors in the server's own words."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any
from urllib.parse import quote

import httpx
import typer

from amalgam.cli.consoles import on_stderr, on_stdout
from amalgam.cli.one_line import ended, ended_with
from amalgam.cli.tables import UNBOUND, PlainTable, print_fitting
from amalgam.errors.requests import FieldRefused
from amalgam.errors.terminal import NoAnswer, NotAmalgam

DEFAULT_URL = "http://127.0.0.1:8000"
Url = Annotated[str, typer.Option(help="the server", envvar="AMALGAM_URL")]
Key = Annotated[str | None, typer.Option(help="admin key", envvar="AMALGAM_ADMIN_KEY", show_default=False)]


def print_table(table: PlainTable) -> None:
    """Print ``table``; where no terminal bounds it, as wide as it is, so that a program reads whole words."""
    console = on_stdout()
    if not console.is_terminal:
        console.width = UNBOUND
    print_fitting(console, table)


@contextmanager
def client(url: str, key: str | None, timeout_s: float = 120.0) -> Iterator[httpx.Client]:
    """A client for the server at ``url``; ends the program with a sentence where no server of ours answers there.

    Raises:
        FieldRefused: the address or the key cannot be one.
    """
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise FieldRefused("key", "is no key: they are printable ASCII without blanks. Give it with --key")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=timeout_s, trust_env=False) as session:
            yield session
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise FieldRefused("url", f"{url!r} is no address. Write it as {DEFAULT_URL}") from None
    except httpx.HTTPError as error:
        raise ended_with(NoAnswer(url, _why(error))) from None
    except (KeyError, TypeError, AttributeError, IndexError):
        # An answer of another form than ours, in JSON all the same.
        raise ended_with(NotAmalgam(url)) from None


def _why(error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.ConnectError):
        return "nothing listens there, or its certificate is not accepted"
    if isinstance(error, httpx.TimeoutException):
        return "it took too long"
    return "the connection was broken off"


def path_of(*parts: str) -> str:
    """A path of the admin plane, whatever stands in its parts; verbs after a colon are written behind it."""
    return "/admin/v1/" + "/".join(quote(part, safe="", errors="surrogateescape") for part in parts)


def every_page(session: httpx.Client, path: str, search: str = "", **more: str) -> Iterator[dict[str, Any]]:
    """The entries of a listing, from all of its pages.

    Args:
        session: with the server.
        path: of the listing.
        search: part of the names; empty for all, also where a listing knows no such parameter.
        more: other parameters of the query.
    """
    cursor: str | None = None
    while True:
        query: dict[str, str | int] = {"limit": 200, **more}
        if search:
            query["search"] = search
        if cursor is not None:
            query["cursor"] = cursor
        page = answer(session.get(path, params=query))
        yield from page["data"]
        cursor = page["next_cursor"]
        if cursor is None:
            return


def answer(response: httpx.Response, *needed: str) -> Any:
    """The JSON of a good answer, which has the fields ``needed``; else the program ends, in the server's words."""
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ended_with(NotAmalgam(str(response.url)))
    if response.is_success:
        if any(field not in body for field in needed):
            raise ended_with(NotAmalgam(str(response.url)))
        return body
    error = body.get("error")
    if not isinstance(error, dict) or "message" not in error:
        raise ended_with(NotAmalgam(str(response.url)))
    for finding in error.get("findings", ()):
        on_stderr().print(
            f"  {finding['severity']}: {finding['code']}: {finding['message']}", markup=False, soft_wrap=True
        )
    raise ended(str(error.get("code", response.status_code)), str(error["message"]), 1)
