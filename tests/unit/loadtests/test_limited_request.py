"""The request that benchmarks of limits make passes through the server's own code, and is charged by it."""

import pytest

from loadtests.limited_request import LimitedRequest

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 100}


@pytest.mark.parametrize("is_limited", [True, False])
async def test_a_request_is_reserved_settled_and_written_down(is_limited: bool) -> None:
    request = LimitedRequest(CHAT, is_limited=is_limited)
    for _ in range(3):
        await request.once()
        await request.uncounted()
