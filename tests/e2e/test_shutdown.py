"""SIGTERM under load, at a server of its own: what runs finishes, what is too long is cut and told why.

What a server says while it stops is tested in `tests/faults/test_shutdown.py`; here the engine is the real one.
"""

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.e2e.conftest import API_KEY, start_server, stop_server
from tests.e2e.engine_core import core_pid

pytestmark = pytest.mark.slow

PROMPT: Any = [{"role": "user", "content": "Count from one to one thousand in words."}]
DRAIN_S = 20


async def stream(client: openai.AsyncOpenAI, tokens: int, begun: asyncio.Semaphore) -> str:
    """How a stream ends: its reason, or the code of the error that it tells of."""
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
    except openai.APIError as error:
        return str(error.code)
    return reason or "cut without a word"


async def test_sigterm_lets_streams_finish_and_cuts_the_endless_one(tmp_path: Path) -> None:
    server = await asyncio.to_thread(start_server, tmp_path)
    try:
        base_url = f"{server.url}/v1"
        async with openai.AsyncOpenAI(base_url=base_url, api_key=API_KEY, max_retries=0, timeout=120) as client:
            begun = asyncio.Semaphore(0)
            core = core_pid(server)
            short = [asyncio.create_task(stream(client, 24, begun)) for _ in range(20)]
            endless = asyncio.create_task(stream(client, 1900, begun))
            for _ in range(21):
                await asyncio.wait_for(begun.acquire(), 120)
            sent = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert await asyncio.gather(*short) == ["length"] * 20
            assert await endless == "server_stopping"
        code = await asyncio.to_thread(server.process.wait, 90)
    finally:
        if server.process.poll() is None:
            await asyncio.to_thread(stop_server, server.process)
    assert code == 0, "".join(server.log[-40:])
    assert time.monotonic() - sent < DRAIN_S + 30
    assert not _exists(core), "the engine's core outlived its server"
    # Such as of a library in C++ whose objects were never let go.
    assert not [line for line in server.log if "leaked" in line]


def _exists(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
