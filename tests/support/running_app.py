"""The real application on a base model of a few kilobytes: real registry, store and worker; only the engine is fake."""

import asyncio
import json
import socket
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Message

import amalgam.app
from amalgam.api.state import Services
from amalgam.cli.connection_limits import LISTEN_QUEUE, SEND_BUFFER_BYTES, ConnectionLimits, prepare_listener
from amalgam.cli.http_protocol import bounded_http
from amalgam.domain.clock import new_id
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.database import Database
from amalgam.registry.evaluations import EvaluationRegistry
from amalgam.registry.fit_jobs import FitJobRegistry
from amalgam.registry.jobs import JobRegistry
from amalgam.registry.kept_objects import KeptObjectRegistry
from amalgam.services.adapter_files import open_store
from amalgam.settings import Settings
from amalgam.store.adapter_store import AdapterStore
from amalgam.wiring.parts import Start
from tests.adapter_factory import ATTENTION_MODULES, encode_safetensors, module_widths, write_lora
from tests.api.fake_engine import FakeEngine

ADMIN_KEY = "ak_root_admin-secret-4711"
API_KEY = "ak_me_client-secret-0815"
VOCABULARY = 32
_SHAPE = {"hidden": 16, "heads_kv_dim": 8, "intermediate": 24}
_LAYERS = 2


def write_base(folder: Path) -> Path:
    """A Llama of two tiny layers."""
    import numpy as np

    tensors = {"model.embed_tokens.weight": np.ones((VOCABULARY, _SHAPE["hidden"]), np.float32)}
    for layer in range(_LAYERS):
        for module, shape in module_widths(**_SHAPE).items():
            block = "self_attn" if module in ATTENTION_MODULES else "mlp"
            tensors[f"model.layers.{layer}.{block}.{module}.weight"] = np.ones(shape, np.float32)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 16}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(encode_safetensors(tensors, "bfloat16"))
    return folder


def write_adapter(folder: Path, *, seed: int = 0, rank: int = 2, **changes: Any) -> Path:
    """An adapter that fits `write_base`."""
    return write_lora(folder, layers=_LAYERS, rank=rank, seed=seed, **(_SHAPE | changes))


@dataclass(frozen=True)
class Stored:
    """The registry and the store of an application, as another process has them that works on the same ones."""

    database: Database
    versions: AdapterRegistry
    jobs: JobRegistry
    evaluations: EvaluationRegistry
    fits: FitJobRegistry
    files: AdapterStore

    @classmethod
    async def open(cls, settings: Settings, stack: AsyncExitStack) -> "Stored":
        """Open what ``settings`` name, until ``stack`` ends."""
        database = await stack.enter_async_context(Database.open(settings.storage.registry_url))
        objects = KeptObjectRegistry(database, database.clock) if settings.storage.bucket else None
        return cls(
            database,
            AdapterRegistry(database, database.clock),
            JobRegistry(database, database.clock, new_id),
            EvaluationRegistry(database, database.clock, new_id),
            FitJobRegistry(database, database.clock),
            await open_store(settings, objects),
        )


@dataclass
class RunningApp:
    """A running application and how to reach it."""

    app: FastAPI
    engine: FakeEngine
    folder: Path
    settings: Settings
    stack: AsyncExitStack
    """Ends before the application does."""
    _stored: Stored | None = None

    async def stored(self) -> Stored:
        """What lies below the application, opened a second time."""
        if self._stored is None:
            self._stored = await Stored.open(self.settings, self.stack)
        return self._stored

    @property
    def services(self) -> Services:
        services: Services = self.app.state.amalgam
        return services

    @property
    def sources(self) -> Path:
        return self.folder / "sources"

    def http(self, key: str | None = None, host: str = "localhost") -> httpx.AsyncClient:
        """A client in this process; what the application raises becomes the answer a server would send."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url=f"http://{host}", headers=headers, timeout=30)

    def staged(self) -> list[Path]:
        """What uploads left behind."""
        return list((self.folder / "store" / "staging").iterdir())


@asynccontextmanager
async def start_app(
    folder: Path,
    engine: FakeEngine | None = None,
    *,
    worker: bool | Sequence[str] = False,
    blender: bool | Sequence[str] = False,
    context_tokens: int | None = None,
    **changes: Any,
) -> AsyncIterator[RunningApp]:
    """Build and start the application; it is stopped at the end.

    Args:
        folder: for the base model, the store and sources.
        worker: whether the real merge process runs, or the command that does; else one that only reads its input.
        blender: the same of the blend process.
        context_tokens: what the engine is started with; None leaves it open.
        changes: of the settings.
    """
    (folder / "sources").mkdir(parents=True, exist_ok=True)
    base = write_base(folder / "base")
    given = {
        "store": folder / "store",
        "admin_key": ADMIN_KEY,
        "api_keys": API_KEY,
        "source_roots": str(folder / "sources"),
        "blend_dir": folder / "blends",
        "drain_timeout_s": 1.0,
        "max_body_bytes": 1 << 20,
        "max_upload_bytes": 1 << 20,
    }
    settings = Settings(**(given | changes))
    engine = engine or FakeEngine()
    args = Namespace(model=str(base), served_model_name=["tiny"], max_lora_rank=16, max_loras=2, max_cpu_loras=4)
    args.max_model_len = context_tokens
    async with AsyncExitStack() as stack:
        real = Start()
        start = Start(
            worker_command=_command(worker, real.worker_command),
            blender_command=_command(blender, real.blender_command),
        )
        app = amalgam.app.create_app(settings, args, start, engine_factory=lambda state: engine)
        await stack.enter_async_context(running(app))
        beside = await stack.enter_async_context(AsyncExitStack())
        yield RunningApp(app, engine, folder, settings, beside)


def _command(asked: bool | Sequence[str], real: Sequence[str]) -> Sequence[str]:
    if isinstance(asked, bool):
        return real if asked else ("cat",)
    return asked


@asynccontextmanager
async def running(app: ASGIApp) -> AsyncIterator[None]:
    """Run the application's lifespan, in a task of its own as servers do."""
    to_app: asyncio.Queue[Message] = asyncio.Queue()
    from_app: asyncio.Queue[Message] = asyncio.Queue()
    task = asyncio.ensure_future(app({"type": "lifespan", "asgi": {"version": "3.0"}}, to_app.get, from_app.put))
    await to_app.put({"type": "lifespan.startup"})
    started = asyncio.create_task(from_app.get())
    await asyncio.wait({task, started}, return_when=asyncio.FIRST_COMPLETED)
    if not started.done() or started.result()["type"] != "lifespan.startup.complete":
        started.cancel()
        await task
        raise AssertionError(f"the application did not start: {started}")
    try:
        yield
    finally:
        await to_app.put({"type": "lifespan.shutdown"})
        assert (await from_app.get())["type"] == "lifespan.shutdown.complete"
        await task


@asynccontextmanager
async def served(
    app: ASGIApp,
    limits: ConnectionLimits | None = None,
    on_cut: Callable[[str], None] = lambda reason: None,
    send_buffer_bytes: int | None = None,
    accepts: int = LISTEN_QUEUE,
) -> AsyncIterator[str]:
    """The same application behind a real uvicorn on loopback; yields its URL. Its lifespan runs elsewhere."""
    protocol = bounded_http(limits, on_cut)
    config = uvicorn.Config(
        app, http=protocol, ws="none", backlog=accepts, log_level="critical", lifespan="off", access_log=False
    )
    server = uvicorn.Server(config)
    listener = socket.socket()
    # With a small one a peer that does not read shows soon.
    prepare_listener(listener, send_buffer_bytes or SEND_BUFFER_BYTES)
    listener.bind(("127.0.0.1", 0))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    listener.listen(LISTEN_QUEUE)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


async def push(http: httpx.AsyncClient, name: str, folder: Path, **form: str) -> httpx.Response:
    """Upload a folder as a new version of ``name``."""
    files = await asyncio.to_thread(lambda: [("files", (p.name, p.read_bytes())) for p in sorted(folder.iterdir())])
    return await http.post("/admin/v1/adapters", data={"name": name} | form, files=files)


def assert_error(answer: httpx.Response, status: int, code: str) -> Mapping[str, Any]:
    """The one shape of every error: four fields and the request's id, and nothing that the server keeps to itself."""
    assert answer.status_code == status, answer.text
    error: Mapping[str, Any] = answer.json()["error"]
    assert error.keys() - {"findings"} == {"message", "type", "param", "code", "request_id"}, answer.text
    assert error["code"] == code, answer.text
    assert error["request_id"] == answer.headers["x-request-id"]
    for private in ("Traceback", 'File "', "0x7f", "/tmp/", "/root/", "site-packages", "object at"):
        assert private not in answer.text
    return error
