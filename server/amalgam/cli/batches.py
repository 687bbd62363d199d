"""`amalgam batches`: files of requests that a running server answers when it has capacity to spare."""

import time
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from amalgam.cli.client import DEFAULT_URL, Key, Url, answer, client, print_table
from amalgam.cli.consoles import on_stdout
from amalgam.cli.one_line import OneLineGroup
from amalgam.cli.tables import PlainTable, whole
from amalgam.domain.batch import BATCH_ENDPOINTS
from amalgam.errors.requests import FieldRefused

BatchId = Annotated[str, typer.Argument(help="as `amalgam batches ls` shows it")]

app = typer.Typer(cls=OneLineGroup, help="Batches of requests on a running server.", no_args_is_help=True)


@app.command()
def create(
    file: Annotated[Path, typer.Argument(help="requests, a line of JSON each", exists=True, dir_okay=False)],
    endpoint: Annotated[str, typer.Option(help="of every line")] = BATCH_ENDPOINTS[0],
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Upload a file of requests and have it answered; prints the batch's id."""
    if endpoint not in BATCH_ENDPOINTS:
        raise FieldRefused("endpoint", f"must be one of {', '.join(BATCH_ENDPOINTS)}")
    with client(url, key) as session, file.open("rb") as source:
        form = {"file": (file.name, source)}
        stored = answer(session.post("/v1/files", data={"purpose": "batch"}, files=form), "id")
        body = {"input_file_id": stored["id"], "endpoint": endpoint, "completion_window": "24h"}
        print(answer(session.post("/v1/batches", json=body), "id")["id"])


@app.command("ls")
def list_batches(
    limit: Annotated[int, typer.Option(min=1, max=100, help="how many, the newest first")] = 20,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """List batches, newest first."""
    table = PlainTable(whole("batch"), "status", "endpoint", "answered", "refused", "lines", "created")
    with client(url, key) as session:
        for batch in answer(session.get("/v1/batches", params={"limit": limit}), "data")["data"]:
            counts = batch["request_counts"]
            created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(batch["created_at"]))
            done = (str(counts[name]) for name in ("completed", "failed", "total"))
            table.add_texts(batch["id"], batch["status"], batch["endpoint"], *done, created)
    print_table(table)


@app.command()
def show(batch: BatchId, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Show one batch, as JSON."""
    with client(url, key) as session:
        on_stdout().print_json(data=_one(session.get(_path(batch))))


@app.command()
def cancel(batch: BatchId, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Have a batch end with what it has."""
    with client(url, key) as session:
        found = _one(session.post(f"{_path(batch)}/cancel"))
        print(f"{found['id']} is {found['status']}")


def _path(batch: str) -> str:
    return f"/v1/batches/{quote(batch, safe='', errors='surrogateescape')}"


def _one(response: Any) -> dict[str, Any]:
    found: dict[str, Any] = answer(response, "id")
    return found
