"""Replicas without a model: the tests' fake engine, whose pieces of a stream say which process they come from."""

import os
from pathlib import Path

from starlette.applications import Starlette

from amalgam.engine.protocol import OwnTemplate
from amalgam.engine.remote.messages import ServedFacts
from amalgam.engine.remote.replica import ReplicaOrder, ReplicaParts
from tests.api.fake_engine import FakeEngine

FACTORY = "tests.cluster.fake_replica:open_fake"
TOKEN_S = 0.02
TOKENS = 25
"""Of every stream: half a second."""


async def open_fake(order: ReplicaOrder) -> ReplicaParts:
    engine = FakeEngine(capacity=8, chunk_pause_s=TOKEN_S, chunks=TOKENS, word=f"{os.getpid()}:", sequences=16)
    names = order.served_names
    facts = ServedFacts(
        names=names,
        fingerprint="",
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
