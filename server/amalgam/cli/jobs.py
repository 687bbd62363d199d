"""`amalgam jobs`: what a running server builds and exports, how far it is, and an end to it."""

import time
from typing import Annotated, Any, Final

import httpx
import typer

from amalgam.cli.client import DEFAULT_URL, Key, Url, answer, client, path_of, print_table
from amalgam.cli.consoles import on_stdout
from amalgam.cli.one_line import OneLineGroup, ended
from amalgam.cli.recipe_options import progress_bar
from amalgam.cli.tables import PlainTable, whole
from amalgam.domain.job import LIVE_STATES

_POLL_S: Final = 0.5

JobId = Annotated[str, typer.Argument(help="as `amalgam jobs ls` shows it")]

app = typer.Typer(cls=OneLineGroup, help="Merges and exports on a running server.", no_args_is_help=True)


@app.command("ls")
def list_jobs(
    limit: Annotated[int, typer.Option(min=1, max=500, help="how many, the newest first")] = 50,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """List jobs, newest first."""
    table = PlainTable(whole("job"), "kind", whole("name"), "state", "done", "made", "changed")
    with client(url, key) as session:
        for job in answer(session.get(path_of("jobs"), params={"limit": limit}))["data"]:
            made = job["version"] or (job["error"] or {}).get("code", "-")
            table.add_texts(job["id"], job["kind"], job["name"], job["state"], _done(job), made, job["updated_at"][:19])
    print_table(table)


@app.command()
def show(job: JobId, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Show one job, as JSON."""
    with client(url, key) as session:
        on_stdout().print_json(data=answer(session.get(path_of("jobs", job)), "id"))


@app.command()
def cancel(job: JobId, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Cancel a job that is not done yet."""
    with client(url, key) as session:
        on_stdout().print(
            described(answer(session.post(path_of("jobs", job) + ":cancel"))), markup=False, soft_wrap=True
        )


def described(job: dict[str, Any]) -> str:
    """One line about a job: what it is of, its state, and what it made."""
    made = f", {job['version']}" if job["version"] else ""
    return f"{job['id']}: {job['kind']} of {job['name']}, {job['state']}{made}"


def followed(session: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    """The job at its end; ends the program with the reason where it failed or was cancelled."""
    with progress_bar() as progress:
        line = progress.add_task(f"{job['kind']} of {job['name']}", total=None)
        while job["state"] in LIVE_STATES:
            time.sleep(_POLL_S)
            job = answer(session.get(path_of("jobs", job["id"])))
            told = job["progress"] or {}
            total = told.get("modules_total") or None
            progress.update(line, completed=told.get("modules_done", 0), total=total)
    if job["state"] == "published":
        return job
    reason = job["error"] or {"code": "cancelled", "message": f"The job {job['id']} was cancelled. Submit it again."}
    raise ended(str(reason["code"]), str(reason["message"]), 1)


def _done(job: dict[str, Any]) -> str:
    told = job["progress"] or {}
    return f"{told.get('modules_done', 0)}/{told['modules_total']}" if told.get("modules_total") else "-"
