"""A server that is killed in the middle of an experiment: another one goes on with what was seen."""

import asyncio
from pathlib import Path

import httpx
import pytest

from tests.faults.test_shutdown import MESSAGES, server
from tests.support.running_app import ADMIN_KEY, push, write_adapter

EXPERIMENT = "/admin/v1/aliases/chat/experiment"
BODY = {"model": "chat", "messages": MESSAGES, "max_tokens": 1}


def admin_at(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {ADMIN_KEY}"}, timeout=60)


async def judged(http: httpx.AsyncClient, numbers: range) -> None:
    """Answers of the candidate are good, the control's are not."""

    async def one(number: int) -> None:
        answer = await http.post("/v1/chat/completions", json=BODY, headers={"x-request-id": f"req-{number}"})
        value = answer.headers["x-amalgam-adapter"] == "sql@2"
        said = await http.post("/v1/feedback", json={"id": f"req-{number}", "name": "thumb", "value": value})
        assert said.status_code == 200, said.text

    await asyncio.gather(*map(one, numbers))


@pytest.mark.slow
async def test_acknowledged_feedback_outlives_a_kill_and_the_experiment_ends_all_the_same(tmp_path: Path) -> None:
    async with server(tmp_path, 0, 1) as killed, admin_at(killed.url) as admin:
        for seed in (1, 2):
            pushed = await push(admin, "sql", write_adapter(tmp_path / f"sql{seed}", seed=seed))
            assert pushed.status_code == 201, pushed.text
        targets = {"targets": [{"model": "sql@1"}, {"model": "sql@2"}]}
        assert (await admin.put("/admin/v1/aliases/chat", json=targets)).status_code == 201
        begun = await admin.put(EXPERIMENT, json={"metric": "thumb", "promote": True})
        assert begun.status_code == 200, begun.text
        await judged(killed.http, range(6))
        killed.process.kill()
        await killed.ended()
    async with server(tmp_path, 0, 1) as again, admin_at(again.url) as admin:
        seen = (await admin.get(EXPERIMENT)).json()
        assert seen["id"] == begun.json()["id"]
        assert sum(target["outcomes"] for target in seen["targets"]) == 6
        number = 6
        async with asyncio.timeout(90):
            while (seen := (await admin.get(EXPERIMENT)).json())["state"] == "running":
                await judged(again.http, range(number, number + 10))
                number += 10
        assert (seen["verdict"], seen["winner"]) == ("better", "sql@2")
        assert sum(target["outcomes"] for target in seen["targets"]) > 6
