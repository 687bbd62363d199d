"""`amalgam usage`: what was used, by whom and of what, on a running server."""

import re
import time
from typing import Annotated, Any, Final

import typer

from amalgam.cli.client import DEFAULT_URL, Key, Url, answer, client, print_table
from amalgam.cli.consoles import on_stdout
from amalgam.cli.tables import PlainTable, whole
from amalgam.errors.requests import FieldRefused

_UNITS_S: Final = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SPAN: Final = re.compile(r"([0-9]{1,6})([mhdw])")
_COUNTS: Final = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "blend_builds")


def usage(
    by: Annotated[str, typer.Option(help="any of tenant, key, alias, version, model, endpoint, by commas")] = "tenant",
    since: Annotated[str, typer.Option(help="how long ago it begins: 90m, 24h, 7d")] = "24h",
    width: Annotated[str | None, typer.Option(help="1m, 1h or 1d: a line for each; none: one sum")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="a table in CSV")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Sum up what was used."""
    query: dict[str, Any] = {"start_time": int(time.time()) - _seconds(since), "by": by}
    if width is not None:
        query["bucket_width"] = width
    with client(url, key) as session:
        if csv:
            response = session.get("/admin/v1/usage", params=query | {"format": "csv"})
            if response.is_success and response.headers.get("content-type", "").startswith("text/csv"):
                print(response.text, end="")
                return
            answer(response)
            raise KeyError("csv")
        report = answer(session.get("/admin/v1/usage", params=query), "data")
        names = [name.strip() for name in by.split(",") if name.strip()]
        table = PlainTable(*(["begin"] if width else []), *map(whole, names), *_COUNTS)
        for line in report["data"]:
            begin = [line["start_time"]] if width else []
            table.add_texts(*begin, *(line[name] for name in names), *(f"{line[name]:,}" for name in _COUNTS))
    if table.row_count == 0:
        on_stdout().print("nothing was used")
        return
    print_table(table)


def _seconds(since: str) -> int:
    found = _SPAN.fullmatch(since)
    if found is None:
        raise FieldRefused("since", f"{since!r} is no span of time. Write 90m, 24h or 7d")
    return int(found[1]) * _UNITS_S[found[2]]
