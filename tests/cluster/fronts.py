"""A front over replicas on Ray: the real application, with the real engine of a front, behind a real HTTP server."""

import asyncio
import itertools
import json
from argparse import Namespace
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from amalgam.app import create_app
from amalgam.engine.remote.app import deploy, engine_handle, first_facts, losses
from amalgam.engine.remote.messages import ReplicaInfo
from amalgam.engine.remote.remote_engine import RemoteEngine
from amalgam.engine.remote.replica import INFO, ReplicaOrder
from amalgam.settings import Settings
from amalgam.wiring.parts import Start
from tests.cluster.fake_replica import FACTORY, TOKENS
from tests.support.running_app import ADMIN_KEY, API_KEY, push, running, served, write_adapter, write_base

LONGEST_S = 90.0
"""A busy machine takes long to start processes."""


@dataclass(frozen=True)
class Cluster:
    """A Ray that runs, and this process one of its."""

    address: str
    store: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    """Of the engines, in addition to the store's."""

    def deploy(self, replicas: int, generation: str = "") -> None:
        """Blocks until they answer."""
        variables = {"AMALGAM_STORE": str(self.store), **self.variables}
        names = ("tiny",)
        order = ReplicaOrder(factory=FACTORY, model="", served_names=names, generation=generation, variables=variables)
        deploy(order, replicas, cpus=0.1, gpus=0.0, drain_s=20.0, busy=32)


@dataclass
class Front:
    """One of the servers in front."""

    app: FastAPI
    url: str
    engine: RemoteEngine
    handle: Any
    folder: Path

    def http(self, key: str = API_KEY) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=60,
            limits=httpx.Limits(max_connections=64),
        )  # fmt: skip

    async def register(self, name: str, seed: int) -> None:
        async with self.http(ADMIN_KEY) as admin:
            there = await push(admin, name, write_adapter(self.folder / "sources" / name, seed=seed))
            assert there.status_code == 201, there.text

    async def infos(self) -> list[ReplicaInfo]:
        said = await self.handle.broadcast("info").results_async(timeout_s=10, return_exceptions=True)
        return [INFO.validate_json(one) for one in said if isinstance(one, bytes)]

    async def until_replicas(self, wanted: int, without: frozenset[str] = frozenset()) -> list[ReplicaInfo]:
        """Those of the engine, once there are ``wanted``, not all of them among ``without``."""
        async with asyncio.timeout(LONGEST_S):
            while True:
                found = await self.infos()
                names = {info.replica for info in found}
                if len(found) == wanted == self.engine.info().replicas and names != without:
                    return found
                await asyncio.sleep(0.1)


@dataclass(frozen=True)
class Streamed:
    """What came of one streaming request."""

    status: int
    pids: tuple[int, ...]
    """Of the processes that its pieces came from, in order."""
    error: dict[str, Any] | None
    """Of the last event, where it is one."""
    is_done: bool


async def traffic(http: httpx.AsyncClient, models: Sequence[str], over: asyncio.Event) -> list[Streamed]:
    """One client after another stream, the models in turn, until ``over``."""
    found: list[Streamed] = []
    for model in itertools.cycle(models):
        if over.is_set():
            return found
        found.append(await stream(http, model))
    return found


async def stream(http: httpx.AsyncClient, model: str, tokens: int = TOKENS) -> Streamed:
    """Ask for a stream of so many tokens, and read it to its end."""
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": tokens}
    pids, error, is_done = [], None, False
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            content = json.loads(await answer.aread())
            return Streamed(answer.status_code, (), content["error"], False)
        async for line in answer.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                is_done = True
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                error = event["error"]
            else:
                pids.append(int(event["choices"][0]["delta"]["content"].partition(":")[0]))
    return Streamed(200, tuple(pids), error, is_done)


@asynccontextmanager
async def front(cluster: Cluster, folder: Path, **changes: Any) -> AsyncIterator[Front]:
    """Start one on the cluster's store, and so on its registry."""
    base = write_base(folder / "base")
    given = {"store": cluster.store, "admin_key": ADMIN_KEY, "api_keys": API_KEY, "blend_dir": folder / "blends"}
    settings = Settings(**(given | {"drain_timeout_s": 1.0} | changes))
    handle = engine_handle(cluster.address)
    facts = await first_facts(handle, cluster.address, LONGEST_S)
    engine = RemoteEngine(handle, facts, losses(), folder.name)
    args = Namespace(
        model=str(base), served_model_name=["tiny"], max_lora_rank=16, max_loras=1, max_cpu_loras=None,
        max_model_len=None, adapts_experts=False,
    )  # fmt: skip
    start = Start(worker_command=("cat",))
    app = create_app(settings, args, start, engine_factory=lambda state: engine)
    async with running(app), served(app) as url:
        await engine.wait_ready(LONGEST_S)
        yield Front(app, url, engine, handle, folder)
