"""SIGTERM under load, last of all: what runs finishes, what is too long is cut, and the process ends in good order."""

import asyncio
import signal
import time
from typing import Any

import openai

from tests.e2e.conftest import RunningServer
from tests.e2e.test_zz_engine_death import core_pid

PROMPT: Any = [{"role": "user", "content": "Count from one to one thousand in words."}]
DRAIN_S = 20


async def stream(client: openai.AsyncOpenAI, tokens: int, begun: asyncio.Semaphore) -> str:
    """How a stream ends: ``stop reason``, or ``cut``."""
    reason = ""
    try:
        chunks = await client.chat.completions.create(
            model="sql", messages=PROMPT, max_tokens=tokens, stream=True, extra_body={"ignore_eos": True}
        )
        first = True
        async for chunk in chunks:
            if first:
                begun.release()
                first = False
            reason = chunk.choices[0].finish_reason or reason
    except (openai.APIError, OSError):
        return "cut"
    return reason or "cut"


async def test_sigterm_lets_streams_finish_and_cuts_the_endless_one(
    server: RunningServer, async_client: openai.AsyncOpenAI
) -> None:
    begun = asyncio.Semaphore(0)
    core = core_pid(server)
    short = [asyncio.create_task(stream(async_client, 24, begun)) for _ in range(20)]
    endless = asyncio.create_task(stream(async_client, 1900, begun))
    for _ in range(21):
        await asyncio.wait_for(begun.acquire(), 120)
    server.stopped = True
    sent = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert await asyncio.gather(*short) == ["length"] * 20
    assert await endless == "cut"
    code = await asyncio.to_thread(server.process.wait, 90)
    assert code == 0, "".join(server.log[-40:])
    assert time.monotonic() - sent < DRAIN_S + 30
    assert not _exists(core), "the engine's core outlived its server"


def _exists(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
