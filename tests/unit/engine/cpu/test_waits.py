"""How the engine's processes wait for each other: over vLLM's own queue, which must lose nothing."""

import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue, SpinCondition

from amalgam.engine.cpu.waits import install

STOCK = SpinCondition.wait

pytestmark = pytest.mark.alone


@pytest.fixture(autouse=True)
def platform(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A CPU with a vLLM of the tested version; what is installed goes with the test."""
    fake = SimpleNamespace(is_cpu=lambda: True)
    monkeypatch.setattr(SpinCondition, "wait", getattr(STOCK, "__wrapped__", STOCK))
    monkeypatch.setattr("vllm.platforms.current_platform", fake)
    monkeypatch.setattr(sys.modules["vllm"], "__version__", "0.32.0")
    monkeypatch.delenv("AMALGAM_ENGINE_WAITS", raising=False)
    return fake


@pytest.fixture
def queue() -> tuple[MessageQueue, MessageQueue]:
    """A writer and its reader."""
    writer = MessageQueue(1, 1)
    reader = MessageQueue.create_from_handle(writer.export_handle(), 0)
    ready = threading.Thread(target=reader.wait_until_ready)
    ready.start()
    writer.wait_until_ready()
    ready.join()
    return writer, reader


def waited(queue: tuple[MessageQueue, MessageQueue], seconds: float) -> tuple[Any, float]:
    """What the reader got that waited for so long, and the processor's seconds it took."""
    writer, reader = queue
    writer.enqueue("before")
    assert reader.dequeue() == "before"
    timer = threading.Timer(seconds, writer.enqueue, ("late",))
    timer.start()
    began = time.thread_time()
    got = reader.dequeue(timeout=20)
    timer.join()
    return got, time.thread_time() - began


def test_a_reader_sleeps_and_hears_all_the_same(queue: Any) -> None:
    install()
    install()
    got, spent = waited(queue, 0.5)
    assert got == "late"
    assert spent < 0.25


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """Every pause of this process: since when, by the monotonic clock, and for how long."""
    taken: list[tuple[float, float]] = []
    sleep = time.sleep

    def recorded(seconds: float) -> None:
        taken.append((time.monotonic(), seconds))
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", recorded)
    return taken


def test_who_has_waited_for_long_looks_less_often(queue: Any, pauses: list[tuple[float, float]]) -> None:
    install()
    assert waited(queue, 0.3)[0] == "late"
    began = pauses[0][0]
    assert min(seconds for _, seconds in pauses) == 1e-4
    for at, seconds in pauses:
        # A hundredth of the wait so far, which began before the first pause: on a busy machine up to that much before.
        assert 1e-4 <= seconds <= max(1e-4, 0.01 * (at - began + 0.1))
    assert pauses[-1][1] > 1e-3 * 0.9


def test_every_message_comes_in_order(queue: Any) -> None:
    install()
    writer, reader = queue
    sender = threading.Thread(target=lambda: [writer.enqueue(number) for number in range(500)])
    sender.start()
    assert [reader.dequeue(timeout=20) for _ in range(500)] == list(range(500))
    sender.join()


def test_after_long_silence_vllms_own_way_takes_over(queue: Any, pauses: list[tuple[float, float]]) -> None:
    install()
    assert waited(queue, 2.0)[0] == "late"
    lasted = pauses[-1][0] - pauses[0][0]
    assert 0.8 < lasted < 1.2, "vLLM's own way begins after a second"


@pytest.mark.parametrize("why", ["a GPU", "another version", "the switch"])
def test_elsewhere_vllm_waits_as_it_does(why: str, platform: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    before = SpinCondition.wait
    if why == "a GPU":
        platform.is_cpu = lambda: False
    elif why == "another version":
        monkeypatch.setattr(sys.modules["vllm"], "__version__", "0.33.0")
    else:
        monkeypatch.setenv("AMALGAM_ENGINE_WAITS", "awake")
    install()
    assert SpinCondition.wait is before
