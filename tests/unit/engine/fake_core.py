"""Stands in the place of vLLM's AsyncLLM: a core that is lost at chosen moments. All that is ours around it is real."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.engine.exceptions import EngineDeadError

from amalgam.engine import core_watch, vllm_client, vllm_endpoints, vllm_engine
from amalgam.engine.protocol import LoadableVersion

VERSIONS = [LoadableVersion(f"a@{number}", number, Path("/nowhere")) for number in (1, 2)]


@dataclass(eq=False)
class Asked:
    """As much of vLLM's state of a request as is read."""

    lora_name: str | None


class OutputProcessor:
    """What vLLM gives a core's outputs to, and what tells the requests that wait for them of its end."""

    def __init__(self) -> None:
        self.request_states: dict[str, Any] = {}
        self.told: list[BaseException] = []

    def add_request(self, *asked: Any) -> None:
        """Requests are entered by `FakeCore` itself."""

    def process_outputs(self, outputs: Iterable[Any]) -> None:
        """All that matters is done before this is called."""

    def propagate_error(self, error: BaseException) -> None:
        self.told.append(error)


class Core:
    """One life of the engine's core: answers until it is lost, and leaves open what it was asked before."""

    def __init__(self, on_load: "OnLoad", first_logprob: float = -0.5) -> None:
        self.vllm_config = SimpleNamespace(
            scheduler_config=SimpleNamespace(max_num_seqs=4), parallel_config=SimpleNamespace(world_size=1)
        )
        self.input_processor = SimpleNamespace(tokenizer=None)
        self.engine_core = SimpleNamespace(resources=SimpleNamespace(engine_dead=False))
        self.output_processor = OutputProcessor()
        self.logger_manager = None
        self.errored = False
        self.is_silent = False
        self.is_ended = False
        self.loaded: list[int] = []
        self.preload_answer: dict[str, str] | None = None
        """What the worker says to who asks it to read an adapter; None: it does not listen."""
        self._listening: asyncio.Server | None = None
        self._first_logprob = first_logprob
        self._on_load = on_load

    @property
    def is_buried(self) -> bool:
        """Whether its process was ended, and nobody waits for its answers any more."""
        return self.is_ended and self.engine_core.resources.engine_dead and bool(self.output_processor.told)

    async def list_loras(self) -> list[int]:
        if self.is_silent:
            await asyncio.Event().wait()
        return self.loaded

    async def add_lora(self, request: Any) -> None:
        if self.errored:
            raise EngineDeadError
        await self._on_load(self, request.lora_int_id)
        self.loaded.append(request.lora_int_id)

    async def remove_lora(self, lora_id: int) -> None:
        self.loaded.remove(lora_id)

    async def reset_mm_cache(self) -> None:
        """There is none."""

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    async def add_request(self, *_: Any, **__: Any) -> None:
        """Nobody asks but by `generate`."""

    async def generate(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        logprobs = [{0: SimpleNamespace(logprob=self._first_logprob)}]
        yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=(0,), logprobs=logprobs)])

    async def collective_rpc(self, method: str, args: tuple[str]) -> None:
        """The worker is told where to listen for adapters that it is to read beside its steps."""
        assert method == "listen_for_preloads"
        answer = self.preload_answer
        if answer is None:
            return

        async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            writer.write(json.dumps(answer).encode() + b"\n")
            writer.close()

        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(args[0])
        self._listening = await asyncio.start_unix_server(reply, sock=listener)

    def gave_nan(self, *names: str | None) -> None:
        """One step's logits hold NaN in the rows of these adapters; None is the base model."""
        requests = {f"request-{index}": Asked(name) for index, name in enumerate(names)}
        self.output_processor.request_states = requests
        with pytest.raises(EngineDeadError):
            self.output_processor.process_outputs(
                [
                    SimpleNamespace(request_id=key, num_nans_in_logits=1, new_prompt_logprobs_tensors=None)
                    for key in requests
                ]
            )

    def shutdown(self, timeout: float) -> None:
        self.is_ended = True
        if self._listening is not None:
            self._listening.close()


OnLoad = Callable[[Core, int], Awaitable[None]]
"""What a core does over a load."""


async def takes(core: Core, lora_id: int) -> None:
    """An ordinary load."""


async def dies_over_it(core: Core, lora_id: int) -> None:
    """Killed in the middle: nobody answers any more, and vLLM notices soon after."""
    core.errored = True
    await asyncio.Event().wait()


async def dies_after_the_first(core: Core, lora_id: int) -> None:
    """Killed between two loads, so that the next one is refused at once."""
    if lora_id != VERSIONS[0].lora_id:
        core.errored = True
        raise EngineDeadError


async def hangs_over_it(core: Core, lora_id: int) -> None:
    """Stopped in the middle: nobody answers any more, pings neither."""
    core.is_silent = True
    await asyncio.Event().wait()


@dataclass
class Cores:
    """The cores that the engine starts, one after another.

    Attributes:
        lives: how each takes a load; the last one's way is that of all after it.
        failing: which starts fail, counted from one.
        no_endpoints: of which starts vLLM's handlers cannot be built.
        first_logprob: of the token that each gives first.
        preload_answer: see `Core`.
    """

    lives: list[OnLoad] = field(default_factory=lambda: [takes])
    failing: Container[int] = ()
    no_endpoints: Container[int] = ()
    first_logprob: float = -0.5
    preload_answer: dict[str, str] | None = None
    starts: list[float] = field(default_factory=list)
    """When each start began, seconds of the loop's clock."""
    made: list[Core] = field(default_factory=list)

    def __getitem__(self, index: int) -> Core:
        return self.made[index]

    def start(self, loop: asyncio.AbstractEventLoop) -> Core:
        self.starts.append(loop.time())
        if len(self.starts) in self.failing:
            raise ValueError("no such model")
        core = Core(self.lives[min(len(self.made), len(self.lives) - 1)], self.first_logprob)
        core.preload_answer = self.preload_answer
        self.made.append(core)
        return core

    async def init_app_state(self, client: Core, state: Any, *_: Any) -> None:
        if len(self.starts) in self.no_endpoints:
            raise ValueError("no such chat template")
        state.openai_serving_models = SimpleNamespace(lora_requests={})


@pytest.fixture
async def cores(monkeypatch: pytest.MonkeyPatch) -> Cores:
    """Takes the place of vLLM's client, and has the engine's periods and pauses be short."""
    made = Cores()
    loop = asyncio.get_running_loop()
    engine_args = SimpleNamespace(
        create_engine_config=lambda **_: None, enable_log_requests=False, disable_log_stats=True
    )
    monkeypatch.setattr("vllm.engine.arg_utils.AsyncEngineArgs.from_cli_args", lambda args: engine_args)
    monkeypatch.setattr("vllm.v1.engine.async_llm.AsyncLLM.from_vllm_config", lambda **_: made.start(loop))
    monkeypatch.setattr("vllm.entrypoints.launchers.api_server.app_state.init_app_state", made.init_app_state)
    monkeypatch.setattr("vllm.utils.gc_utils.freeze_gc_heap", lambda: None)
    # There is no base model whose class could be asked.
    monkeypatch.setattr(vllm_client, "require_servable", lambda config: None)
    monkeypatch.setattr(vllm_endpoints, "endpoint_table", dict)
    monkeypatch.setattr(core_watch, "HEALTH_PERIOD_S", 0.02)
    monkeypatch.setattr(core_watch, "PING_PERIOD_S", 0.05)
    monkeypatch.setattr(vllm_engine, "RESTART_PAUSE_S", 0.01)
    return made
