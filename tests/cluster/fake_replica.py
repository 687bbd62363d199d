"""Replicas without a model: the tests' fake engine, whose pieces of a stream say which process they come from."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette

from amalgam.engine.protocol import OwnTemplate
from amalgam.engine.remote.messages import ServedFacts
from amalgam.engine.remote.replica import ReplicaOrder, ReplicaParts
from amalgam.store.base_model import base_spec
from tests.api.fake_engine import FakeEngine

FACTORY = "tests.cluster.fake_replica:open_fake"
TOKEN_S = 0.02
TOKENS = 25
"""Of a stream that does not say how long it may be: half a second."""
REFUSED = "refused@1"
"""What the engine does not load."""


class TokenEngine(FakeEngine):
    """A token each `TOKEN_S`, as many as are asked for."""

    async def _pieces(self, body: Mapping[str, Any]) -> AsyncIterator[str]:
        for _ in range(body.get("max_tokens") or TOKENS):
            choice = {"index": 0, "delta": {"content": f"{os.getpid()}:"}, "finish_reason": None}
            chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
            yield f"data: {json.dumps(chunk | {'choices': [choice]})}\n\n"
            await asyncio.sleep(TOKEN_S)
        yield "data: [DONE]\n\n"


async def open_fake(order: ReplicaOrder) -> ReplicaParts:
    """Ready at once; of a model only its shapes are read."""
    fingerprint = base_spec(Path(order.model), "", 16).fingerprint if order.model else ""
    engine = TokenEngine(capacity=16, chunk_pause_s=0.2, sequences=16, refuse_load={REFUSED})
    facts = ServedFacts(
        names=order.served_names,
        fingerprint=fingerprint,
        max_lora_rank=16,
        max_model_len=None,
        adapts_experts=False,
        adapts_towers=False,
        reads_media=False,
        endpoints=("chat_completions", "completions", "messages", "tokenize"),
    )
    return ReplicaParts(engine, Starlette(), facts, Path, _no_template, _close)


def _no_template(model: str, text: str) -> OwnTemplate:
    raise NotImplementedError


async def _close() -> None:
    return
