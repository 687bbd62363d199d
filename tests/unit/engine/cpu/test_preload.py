"""Adapters that are read beside the engine's steps: over a real socket, with vLLM's worker played by a few lines."""

import asyncio
import gc
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import uvloop

from amalgam.engine.cpu import preload
from amalgam.engine.cpu.preload import PreloadingWorker, PreloadLink
from amalgam.engine.protocol import LoadableVersion
from amalgam.errors.internal import PreloadRefused

VERSIONS = [LoadableVersion(f"a@{number}", number, Path(f"/store/{number}")) for number in range(1, 5)]


class Read(str):
    """What was read of an adapter: it has factors for no module."""

    loras: dict[str, Any] = {}  # noqa: RUF012  (nobody changes it)


class Manager:
    """Of adapters in vLLM's worker."""

    def __init__(self) -> None:
        self.read: list[tuple[str, int, str, bool]] = []
        self.removed: list[int] = []
        self._adapter_manager = SimpleNamespace(modules={}, packed_modules={})

    def _load_adapter(self, request: Any) -> Read:
        main = threading.current_thread() is threading.main_thread()
        self.read.append((request.lora_name, request.lora_int_id, request.lora_path, main))
        if request.lora_int_id == 4:
            raise ValueError("expected target modules")
        return Read(f"{request.lora_path}, read {len(self.read)}")

    def remove_adapter(self, lora_id: int) -> bool:
        self.removed.append(lora_id)
        return True


class Worker(PreloadingWorker):
    """As vLLM's is, with our methods mixed in."""

    def __init__(self) -> None:
        self.manager = Manager()
        self.model_runner = SimpleNamespace(lora_manager=self.manager)


@pytest.fixture
def listened(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Worker, PreloadLink]]:
    listeners: list[socket.socket] = []
    listen = preload.listen
    monkeypatch.setattr(preload, "listen", lambda *given: listeners.append(listen(*given)))
    worker, where = Worker(), f"\0amalgam-test-{uuid4().hex}"
    worker.listen_for_preloads(where)
    yield worker, PreloadLink(where)
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_a_name_that_is_taken_is_refused_and_no_socket_stays_open() -> None:
    where = f"\0amalgam-test-{uuid4().hex}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as taken:
        taken.bind(where)
        with pytest.raises(OSError, match="in use"):
            preload.listen(where, preload.Preloads(lambda path: None))
        gc.collect()


def step(worker: Worker, version: LoadableVersion) -> Any:
    """What a step does that needs an adapter which the worker does not hold."""
    from vllm.lora.request import LoRARequest

    return worker.manager._load_adapter(LoRARequest(version.engine_name, version.lora_id, str(version.folder)))


async def test_a_step_uses_what_was_read_beside_it_once(listened: Any) -> None:
    worker, link = listened
    assert await link.ask(VERSIONS[0])
    assert worker.manager.read == [("a@1", 1, "/store/1", False)]
    assert step(worker, VERSIONS[0]) == "/store/1, read 1"
    assert step(worker, VERSIONS[0]) == "/store/1, read 2"
    assert worker.manager.read[-1][-1]


def test_the_loop_that_serves_may_ask_too(listened: Any) -> None:
    worker, link = listened
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(link.ask(VERSIONS[0]))
    assert step(worker, VERSIONS[0]) == "/store/1, read 1"


async def test_a_worker_that_listens_counts_nan_quickly(listened: Any) -> None:
    import torch
    from vllm.v1.worker import gpu_model_runner

    # vLLM counts them.
    assert gpu_model_runner.count_nans_per_row(torch.tensor([[float("nan")] * 3, [0.0] * 3])).tolist() == [1, 0]


async def test_many_may_ask_at_once(listened: Any) -> None:
    worker, link = listened
    assert await asyncio.gather(*[link.ask(version) for version in VERSIONS[:3] * 5]) == [True] * 15
    assert {step(worker, version).split(",")[0] for version in VERSIONS[:3]} == {"/store/1", "/store/2", "/store/3"}
    assert len(worker.manager.read) == 15


async def test_what_cannot_be_read_is_said_and_hurts_nobody(listened: Any) -> None:
    _, link = listened
    with pytest.raises(PreloadRefused, match="ValueError: expected target modules"):
        await link.ask(VERSIONS[3])
    assert await link.ask(VERSIONS[0])


async def test_an_adapter_that_is_freed_before_its_step_is_read_anew(listened: Any) -> None:
    worker, link = listened
    await link.ask(VERSIONS[0])
    assert worker.manager.remove_adapter(1)
    assert worker.manager.removed == [1]
    assert step(worker, VERSIONS[0]) == "/store/1, read 2"


async def test_no_more_are_kept_than_the_limit(listened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preload, "KEPT", 2)
    worker, link = listened
    for version in VERSIONS[:3]:
        await link.ask(version)
    assert [step(worker, version) for version in VERSIONS[:3]] == [
        "/store/1, read 4",
        "/store/2, read 2",
        "/store/3, read 3",
    ]


async def test_who_asks_nonsense_or_leaves_is_passed_over(listened: Any) -> None:
    _, link = listened
    for line in (b"{nonsense\n", b"[]\n", b"{}\n", b""):
        _, writer = await asyncio.open_unix_connection(link.where)
        writer.write(line)
        writer.close()
    assert await link.ask(VERSIONS[0])


async def test_processes_of_other_users_get_no_answer(listened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, link = listened
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert not await link.ask(VERSIONS[0])
    assert worker.manager.read == []


async def test_a_worker_that_is_gone_is_no_error() -> None:
    assert not await PreloadLink(f"\0amalgam-test-{uuid4().hex}").ask(VERSIONS[0])
