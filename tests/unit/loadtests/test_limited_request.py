"""The request that benchmarks of limits make passes through the server's own code, and is charged by it."""

from typing import Any

import pytest

from amalgam.services.usage_ledger import UsageLedger
from loadtests.limited_request import GenerousSlices, LimitedRequest

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 100}


@pytest.mark.parametrize("is_limited", [True, False])
async def test_a_request_is_reserved_and_written_down_and_the_other_one_is_not(
    monkeypatch: pytest.MonkeyPatch, is_limited: bool
) -> None:
    written: list[Any] = []
    asked: list[int] = []
    exchange = GenerousSlices.exchange

    async def watched(self: GenerousSlices, front: str, reached_s: float | None, asks: Any) -> Any:
        asked.append(len(asks))
        return await exchange(self, front, reached_s, asks)

    monkeypatch.setattr(UsageLedger, "add", lambda _, spender, counts: written.append(counts))
    monkeypatch.setattr(GenerousSlices, "exchange", watched)
    request = LimitedRequest(CHAT, is_limited=is_limited)
    await request.uncounted()
    assert (written, asked) == ([], [])
    for _ in range(3):
        await request.once()
    assert [(counts.prompt_tokens, counts.completion_tokens) for counts in written] == [(50, 100)] * 3
    assert max(asked, default=0) == (6 if is_limited else 0), "three limits of the key and three of its tenant"
