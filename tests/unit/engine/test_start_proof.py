"""What a new core has to give before the server is called ready, of cores that fail at chosen places."""

import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from amalgam.engine import start_proof
from amalgam.engine.start_proof import PROBE_ID, no_proof, prove_adapter, prove_base
from amalgam.errors.engine import AdapterNotProven, BaseNotFinite

FOLDER = Path("/nowhere")


class CoreDead(Exception):
    """As vLLM's."""


class Client:
    """Notes what it is asked; fails where it is told to."""

    def __init__(self, fails_at: str = "", is_finite: bool = True) -> None:
        self.asked: list[str] = []
        self.fails_at, self.is_finite = fails_at, is_finite

    def note(self, what: str) -> None:
        self.asked.append(what)
        if what == self.fails_at:
            raise CoreDead(f"{what} failed")

    async def add_lora(self, request: Any) -> None:
        assert (request.lora_int_id, request.lora_path) == (PROBE_ID, str(FOLDER))
        self.note("add")

    async def remove_lora(self, number: int) -> None:
        assert number == PROBE_ID
        self.note("remove")


@pytest.fixture(autouse=True)
def rehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(client: Client, name: str, request: Any) -> bool:
        client.note("token of the base" if request is None else "token of the adapter")
        return client.is_finite

    def request_of(version: Any) -> Any:
        return SimpleNamespace(lora_int_id=version.lora_id, lora_path=str(version.folder))

    module = ModuleType("vllm.v1.engine.exceptions")
    module.EngineDeadError = CoreDead  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(start_proof, "is_answer_finite", answer)
    monkeypatch.setattr(start_proof, "lora_request", request_of)


async def test_an_adapter_is_taken_up_asked_and_let_go_again() -> None:
    client = Client()
    await prove_adapter(client, lambda: nullcontext(FOLDER), lambda: False)
    assert client.asked == ["add", "token of the adapter", "remove"]


@pytest.mark.parametrize("place", ["add", "token of the adapter"])
async def test_a_core_that_fails_over_an_adapter_is_not_ready_and_the_reason_is_told(place: str) -> None:
    with pytest.raises(AdapterNotProven, match=f"CoreDead: {place} failed"):
        await prove_adapter(Client(place), lambda: nullcontext(FOLDER), lambda: False)


async def test_answers_that_are_not_finite_prove_nothing() -> None:
    with pytest.raises(AdapterNotProven, match="not finite"):
        await prove_adapter(Client(is_finite=False), lambda: nullcontext(FOLDER), lambda: False)
    with pytest.raises(AdapterNotProven, match="not finite"):
        # The watch over answers ends the core's life before its answer is there.
        await prove_adapter(Client("token of the adapter"), lambda: nullcontext(FOLDER), lambda: True)
    for client, is_unclean in ((Client(is_finite=False), False), (Client("token of the base"), True)):
        with pytest.raises(BaseNotFinite):
            await prove_base(client, "tiny", lambda: is_unclean)  # noqa: B023 -- called at once


async def test_a_base_without_linear_modules_is_tried_alone() -> None:
    client = Client("add")
    await prove_adapter(client, no_proof, lambda: False)
    assert client.asked == []
