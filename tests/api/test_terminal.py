"""`amalgam merges`, `jobs` and `ask` against a running server: what a terminal shows."""

import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx
import pytest
from typer.testing import CliRunner, Result

from amalgam.__main__ import app
from tests.api.fake_engine import FakeEngine
from tests.support.running_app import ADMIN_KEY, API_KEY, RunningApp, push, served, start_app, write_adapter

Run = Callable[..., Any]


@asynccontextmanager
async def terminal(running_app: RunningApp, key: str, **environment: str) -> AsyncIterator[Run]:
    """A command line of that key; where the environment says nothing else, as a program has it that reads a pipe."""
    async with served(running_app.app) as url:

        async def run(*arguments: object, **options: Any) -> Result:
            words = [*map(str, arguments), "--url", url, "--key", key]
            # However narrow: where no terminal shows it, nothing of a table is cut off.
            runner = CliRunner(env={"COLUMNS": "40"} | environment)
            return await anyio.to_thread.run_sync(lambda: runner.invoke(app, words, **options))

        yield run


async def two_adapters(running_app: RunningApp, tmp_path: Path) -> None:
    async with running_app.http(ADMIN_KEY) as admin:
        for seed, name in enumerate(("one", "two")):
            pushed = await push(admin, name, write_adapter(tmp_path / name, seed=seed))
            assert pushed.status_code == 201, pushed.text


async def test_a_merge_is_made_waited_for_and_listed(tmp_path: Path) -> None:
    async with start_app(tmp_path / "running_app", worker=True) as running_app, terminal(running_app, ADMIN_KEY) as run:
        await two_adapters(running_app, tmp_path)
        made = await run("merges", "create", "both", "one + 0.5*two", "--wait")
        assert made.exit_code == 0, made.output
        assert made.stdout.startswith("both@1  rank 4")
        recipe = {"method": "linear", "inputs": [{"adapter": "one"}, {"adapter": "two"}], "output": {"rank": 2}}
        (tmp_path / "recipe.json").write_text(json.dumps(recipe))
        again = await run("merges", "create", "mean", tmp_path / "recipe.json", "--wait")
        assert (again.exit_code, again.stdout.startswith("mean@1  rank 2")) == (0, True), again.output
        known = await run("merges", "create", "both", "one + 0.5*two")
        assert known.stdout.startswith("both@1  rank 4"), known.output
        listed = await run("jobs", "ls")
        assert listed.exit_code == 0, listed.output
        rows = [line for line in listed.stdout.splitlines() if "job-" in line]
        assert [("mean@1" in row, "published" in row) for row in rows] == [(True, True), (False, True)]
        shown = await run("jobs", "show", next(word for word in rows[0].split() if word.startswith("job-")))
        assert shown.exit_code == 0, shown.output
        assert json.loads(shown.stdout)["version"] == "mean@1"
        refused = await run("merges", "create", "both", "one + nobody")
        assert (refused.exit_code, refused.stderr.startswith("adapter_not_found: ")) == (1, True)


async def test_a_job_is_printed_where_nobody_waits_and_can_be_cancelled(tmp_path: Path) -> None:
    async with start_app(tmp_path / "running_app") as running_app, terminal(running_app, ADMIN_KEY) as run:
        await two_adapters(running_app, tmp_path)
        queued = await run("merges", "create", "both", "one + two")
        assert queued.exit_code == 0, queued.output
        job, _, told = queued.stdout.partition(": ")
        assert told == "merge of both, queued\n"
        cancelled = await run("jobs", "cancel", job)
        assert cancelled.stdout == f"{job}: merge of both, cancelled\n"
        again = await run("jobs", "cancel", job)
        assert (again.exit_code, again.stdout) == (0, cancelled.stdout)
        missing = await run("jobs", "cancel", "job-none")
        assert (missing.exit_code, missing.stderr.partition(":")[0]) == (1, "job_not_found"), missing.output
        assert missing.stderr.count("\n") == 1


LISTS = ("adapters ls", "aliases ls", "jobs ls", "tenants ls", "keys ls", "batches ls", "usage")
LONG_NAME = "an-adapter-with-quite-a-long-name"


@pytest.mark.parametrize("width", [40, 80])
async def test_lists_can_be_read_on_a_terminal_of_that_width(tmp_path: Path, width: int) -> None:
    shown = {"COLUMNS": str(width), "TTY_COMPATIBLE": "1", "NO_COLOR": "1", "TERM": "xterm"}
    async with start_app(tmp_path / "running_app") as running_app, terminal(running_app, ADMIN_KEY, **shown) as run:
        async with running_app.http(ADMIN_KEY) as admin:
            pushed = await push(admin, LONG_NAME, write_adapter(tmp_path / "one"))
            assert pushed.status_code == 201, pushed.text
            chat = {"model": LONG_NAME, "messages": [{"role": "user", "content": "hi"}]}
            assert (await admin.post("/v1/chat/completions", json=chat)).status_code == 200
        for words in (
            ("aliases", "set", "an-alias-of-some-length", f"{LONG_NAME}@1=90", "tiny=10"),
            ("merges", "create", "both-of-them-together", f"{LONG_NAME} + {LONG_NAME}@1"),
            ("tenants", "create", "a-tenant-of-some-length", "--name", "Some Company With A Long Name"),
            ("keys", "create", "--tenant", "a-tenant-of-some-length", "--name", "of the integration tests"),
        ):
            await run(*words)
        for verb in LISTS:
            done = await run(*verb.split())
            assert done.exit_code == 0, done.output
            said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
            assert all(len(line) <= width for line in said.splitlines()), said
            assert "…" not in said, said
            assert said.strip()


@pytest.fixture
async def asked(tmp_path: Path) -> AsyncIterator[tuple[FakeEngine, Run]]:
    engine = FakeEngine()
    async with start_app(tmp_path / "running_app", engine) as running_app, terminal(running_app, API_KEY) as run:
        yield engine, run


async def test_an_answer_comes_piece_by_piece(asked: tuple[FakeEngine, Run]) -> None:
    engine, run = asked
    done = await run("ask", "tiny", "why?", "--max-tokens", "7", "--system", "be brief")
    assert (done.exit_code, done.stdout) == (0, "word0 word1 word2 \n"), done.output
    ((_, body),) = engine.calls
    assert body["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}]
    assert (body["stream"], body["max_tokens"]) == (True, 7)
    piped = await run("ask", "tiny", "-", input="from a pipe\n")
    assert piped.exit_code == 0
    assert engine.calls[-1][1]["messages"] == [{"role": "user", "content": "from a pipe\n"}]


async def test_what_a_model_writes_does_not_steer_the_terminal(asked: tuple[FakeEngine, Run]) -> None:
    engine, run = asked
    engine.word = "\x1b[31m\x07a\n\tb\x9b2J"
    done = await run("ask", "tiny", "why?")
    assert done.stdout == "".join(f"[31ma\n\tb2J{i} " for i in range(3)) + "\n"


async def test_refusals_and_failures_end_in_one_line(asked: tuple[FakeEngine, Run]) -> None:
    engine, run = asked
    missing = await run("ask", "nobody", "why?")
    assert (missing.exit_code, missing.stderr.startswith("model_not_found: ")) == (1, True), missing.output
    engine.stream_failure = httpx.ReadError("gone")
    broken = await run("ask", "tiny", "why?")
    assert broken.exit_code in (1, 2)
    assert broken.stderr.count("\n") == 1
    assert "Traceback" not in broken.output
