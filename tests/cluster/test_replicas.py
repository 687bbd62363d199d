"""Fronts and engines on a real Ray: where requests go, and what clients see when replicas come, go and die."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.api.fake_engine import answer_to
from tests.cluster.fake_replica import TOKENS
from tests.cluster.fronts import Cluster, Front, front, kill, stream
from tests.support.running_app import ADMIN_KEY

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
CLIENTS = 12


async def test_an_adapter_has_one_home_and_whole_answers(server: Front) -> None:
    homes: defaultdict[str, set[int]] = defaultdict(set)
    async with server.http() as http:
        for _ in range(3):
            for number in range(8):
                got = await stream(http, f"a{number}")
                assert (got.status, got.is_done, len(got.pids)) == (200, True, TOKENS), got
                homes[f"a{number}"] |= set(got.pids)
        body = {"model": "a0", "messages": [{"role": "user", "content": "x"}]}
        whole = await http.post("/v1/chat/completions", json=body)
        ready, metrics = await http.get("/readyz"), await http.get("/metrics", headers={"Authorization": f"Bearer {ADMIN_KEY}"})
    assert all(len(pids) == 1 for pids in homes.values()), homes
    assert whole.json()["choices"] == answer_to("chat_completions", {"model": "a0@1"})["choices"]
    assert whole.headers["x-amalgam-adapter"] == "a0@1"
    assert ready.json()["status"] == "ready"
    assert 'amalgam_engine_ready 1.0' in metrics.text
