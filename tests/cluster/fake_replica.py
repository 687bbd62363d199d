"""Replicas without a model: the tests' fake engine, with the real files and blends of an engine's process.

The pieces of a stream say which process they come from, and a whole answer which bytes the engine was lent.
"""

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.responses import JSONResponse

from amalgam.domain.messages import BlendBuilt, BlendOrder, Refusal
from amalgam.engine.protocol import LoadableVersion, OwnTemplate
from amalgam.engine.remote.messages import ServedFacts
from amalgam.engine.remote.replica import ReplicaOrder, ReplicaParts
from amalgam.services.background_loops import BackgroundLoops
from amalgam.services.blend_tier import BlendTier
from amalgam.services.blender_link import BlenderLink
from amalgam.services.fair_queue import FairQueue, Places
from amalgam.settings import Settings
from amalgam.store.base_model import base_spec
from amalgam.store.blend_folders import BlendFolders
from amalgam.telemetry.metric_table import COUNTED_BY_ENGINES
from amalgam.telemetry.metrics import Metrics
from amalgam.workers.engine_blends import EngineBlends
from amalgam.workers.engine_files import EngineFiles
from tests.api.fake_engine import FakeEngine

FACTORY = "tests.cluster.fake_replica:open_fake"
TOKEN_S = 0.02
TOKENS = 25
"""Of a stream that does not say how long it may be: half a second."""
REFUSED = "refused@1"
"""What the engine does not load."""
BLEND_BYTES = 1 << 20
WEIGHTS = "adapter_model.safetensors"


@dataclass
class TokenEngine(FakeEngine):
    """A token each `TOKEN_S`, as many as are asked for."""

    weights: dict[str, str] = field(default_factory=dict)
    """By name, a digest of what was loaded under it."""

    async def take_in(self, version: LoadableVersion) -> None:
        await super().take_in(version)
        self.weights[version.engine_name] = digest_of((version.folder / WEIGHTS).read_bytes())

    async def call(self, endpoint: Any, body: dict[str, Any], raw_request: Any, profile: Any = None) -> Any:
        answer = await super().call(endpoint, body, raw_request, profile)
        if not isinstance(answer, JSONResponse) or endpoint != "chat_completions":
            return answer
        said = json.loads(bytes(answer.body))
        said["choices"][0]["message"]["content"] = self.weights.get(body["model"], "base")
        return JSONResponse(said)

    async def _pieces(self, body: Mapping[str, Any]) -> AsyncIterator[str]:
        for _ in range(body.get("max_tokens") or TOKENS):
            choice = {"index": 0, "delta": {"content": f"{os.getpid()}:"}, "finish_reason": None}
            chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
            yield f"data: {json.dumps(chunk | {'choices': [choice]})}\n\n"
            await asyncio.sleep(TOKEN_S)
        yield "data: [DONE]\n\n"


class WritingBlender(BlenderLink):
    """Writes what a blend is made of in place of its weights."""

    async def build(self, order: BlendOrder, client: str = "") -> BlendBuilt | Refusal:
        inputs = {name: (Path(one.folder) / WEIGHTS).read_bytes() for name, one in order.inputs.items()}
        folder = Path(order.folder)
        folder.mkdir()
        (folder / WEIGHTS).write_bytes(blended(order.recipe.digest(), inputs))
        return BlendBuilt(id=order.id, size_bytes=4096, rank=2, seconds={"merge": 0.0})


def blended(recipe_digest: str, inputs: Mapping[str, bytes]) -> bytes:
    """What stands for the weights of a blend: the recipe, and every byte that goes in."""
    parts = [recipe_digest, *(f"{name}={digest_of(data)}" for name, data in sorted(inputs.items()))]
    return "|".join(parts).encode()


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


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
        blend_bytes=BLEND_BYTES,
    )
    stack, settings, metrics = AsyncExitStack(), Settings(), Metrics()
    files = await stack.enter_async_context(EngineFiles.open(settings))
    files.follow(engine.info)
    folders = BlendFolders.open(files.store.root / "blends")
    tier = BlendTier(folders, engine, BLEND_BYTES, 30.0, metrics=metrics)
    blender = WritingBlender(("cat",), {}, 30.0, BackgroundLoops(metrics), metrics)
    blends = EngineBlends(tier, blender, files, metrics)
    queue = FairQueue(16, 16, 30.0, places=Places.of(16, keys=1))
    return ReplicaParts(
        engine, Starlette(), facts, files.folder, blends, queue, _no_template, partial(_page, metrics), stack.aclose
    )


def _page(metrics: Metrics) -> bytes:
    return metrics.engine_page(COUNTED_BY_ENGINES).text(CollectorRegistry())


def _no_template(model: str, text: str) -> OwnTemplate:
    raise NotImplementedError
