"""A server that is killed while it answers a batch: what was answered stays, and each line is in the output once."""

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from amalgam.registry.database import Database, sqlite_url
from amalgam.registry.tables import batches
from tests.faults.test_shutdown import server
from tests.support.running_app import ADMIN_KEY

pytestmark = pytest.mark.slow

LINES = 60
CONCURRENCY = 4
"""AMALGAM_BATCH_CONCURRENCY."""
CHAT = "/v1/chat/completions"


def requests() -> bytes:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    lines = [{"custom_id": str(n), "method": "POST", "url": CHAT, "body": body} for n in range(LINES)]
    lines[7]["body"] = body | {"model": "nobody"}
    return b"\n".join(json.dumps(one).encode() for one in lines)


async def begun(http: httpx.AsyncClient) -> str:
    files = {"file": ("asked.jsonl", requests())}
    file = (await http.post("/v1/files", data={"purpose": "batch"}, files=files)).json()
    body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
    return str((await http.post("/v1/batches", json=body)).json()["id"])


async def until(http: httpx.AsyncClient, batch_id: str, least: int) -> dict[str, Any]:
    """The batch, once it has ended or so many lines were answered."""
    async with asyncio.timeout(120):
        while True:
            batch: dict[str, Any] = (await http.get(f"/v1/batches/{batch_id}")).json()
            if batch["status"] == "completed" or batch["request_counts"]["completed"] >= least:
                return batch
            await asyncio.sleep(0.05)


async def let_lease_end(folder: Path) -> None:
    """As if half a minute had passed since the server was heard of."""
    async with Database.open(sqlite_url(folder / "store" / "registry.db")) as database, database.write() as connection:
        past = database.clock() - timedelta(seconds=1)
        await connection.execute(batches.update().values(lease_expires_at=past))


async def test_after_a_kill_every_line_is_answered_once(tmp_path: Path) -> None:
    async with server(tmp_path, 0, 1) as killed:
        batch_id = await begun(killed.http)
        found = await until(killed.http, batch_id, 10)
        assert found["status"] == "in_progress"
        killed.process.kill()
        await killed.ended()
    [part] = (tmp_path / "store" / "batches" / batch_id).glob("*.jsonl")
    answered = {
        line.split(b'"id":"')[1].split(b'"')[0].decode()
        for line in part.read_bytes().splitlines(True)
        if line.endswith(b"\n")
    }
    # As a writer that is killed in the middle of a line leaves it.
    with part.open("ab") as torn:
        torn.write(b'59 + {"id":"batch_req_torn","custom_id":"59"')
    await let_lease_end(tmp_path)
    async with server(tmp_path, 0, 1) as again:
        done = await until(again.http, batch_id, LINES)
        assert done["status"] == "completed"
        assert done["request_counts"] == {"total": LINES, "completed": LINES - 1, "failed": 1}
        output, errors = [
            [json.loads(line) for line in (await again.http.get(f"/v1/files/{done[name]}/content")).text.splitlines()]
            for name in ("output_file_id", "error_file_id")
        ]
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        [usage] = (await again.http.get("/admin/v1/usage", headers=headers)).json()["data"]
    assert [one["custom_id"] for one in output] == [str(n) for n in range(LINES) if n != 7]
    assert [one["custom_id"] for one in errors] == ["7"]
    # What the killed server had answered was not asked again: at most what it was asking, and had not counted.
    assert 10 <= len(answered) < LINES
    assert answered <= {one["id"] for one in output + errors}
    assert usage["requests"] <= LINES - 1 + CONCURRENCY
    assert not (tmp_path / "store" / "batches" / batch_id).exists()
