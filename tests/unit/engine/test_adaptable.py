"""Which modules no layer of vLLM's model takes factors for: by the names that adapters have."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.model_executor.models.utils import WeightsMapper

from amalgam.engine.adaptable import ASKED, AskedWorker, left_over, untaken
from amalgam.engine.cpu.preload import EXTENSION, PreloadingWorker
from amalgam.engine.load_threads import LoadThreads
from amalgam.engine.vllm_adapters import VllmAdapters

MODULES = [
    "lm_head",
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.self_attn.x_proj",
    "model.layers.1.mlp.up_proj",
]
WHOLE = "model.layers.0.self_attn.qkv_proj"
"""A layer that is several in one is loaded by its parts alone."""
MANAGER = SimpleNamespace(
    modules={"model.layers.0.self_attn.qkv_proj": None, "model.layers.1.mlp.up_proj": None},
    packed_modules={"model.layers.0.self_attn.qkv_proj": ["model.layers.0.self_attn.q_proj"]},
)


def test_a_layer_of_its_own_and_a_part_of_one_are_taken_and_nothing_else() -> None:
    assert left_over([*MODULES, WHOLE], MANAGER, None) == ["lm_head", "model.layers.0.self_attn.x_proj", WHOLE]


def test_names_are_compared_as_vllms_model_has_them() -> None:
    manager = SimpleNamespace(modules={"language_model.model.layers.0.fc": None}, packed_modules={})
    mapper = WeightsMapper(orig_to_new_prefix={"model.language_model.": "language_model.model.", "lm_head.": None})
    assert left_over(["model.language_model.layers.0.fc", "lm_head"], manager, mapper) == ["lm_head"]


def test_of_a_model_without_its_head_nothing_is_refused_by_name() -> None:
    pooling = SimpleNamespace(modules={"layers.0.fc": None}, packed_modules={}, is_pooling_model=True)
    assert left_over(["model.layers.0.fc"], pooling, None) == []


@pytest.mark.parametrize("worker_class", [AskedWorker, PreloadingWorker])
def test_the_worker_asks_the_manager_of_its_runner(worker_class: type[AskedWorker]) -> None:
    manager = SimpleNamespace(**vars(MANAGER), model=SimpleNamespace())
    worker = worker_class()
    worker.model_runner = SimpleNamespace(lora_manager=SimpleNamespace(_adapter_manager=manager))
    assert worker.modules_without_lora(MODULES) == ["lm_head", "model.layers.0.self_attn.x_proj"]


async def test_what_one_of_several_workers_takes_is_taken() -> None:
    class Client:
        async def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[list[str]]:
            assert (method, args) == ("modules_without_lora", (["a", "b", "c"],))
            return [["a", "b"], ["b", "c"]]

    assert await untaken(Client(), {"c", "b", "a"}) == {"b"}


class Client:
    """vLLM's, whose worker fails the first questions, and then says that it takes all but one module."""

    def __init__(self, extension: str, failing: int) -> None:
        self.vllm_config = SimpleNamespace(parallel_config=SimpleNamespace(worker_extension_cls=extension))
        self.failing = failing
        self.asked = 0

    async def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[list[str]]:
        self.asked += 1
        if self.asked <= self.failing:
            raise RuntimeError("no such method")
        return [["lm_head"]]


@pytest.mark.parametrize(("extension", "asked"), [(ASKED, 2), (EXTENSION, 2), ("users.Own", 0)])
async def test_a_worker_is_asked_until_it_has_said_once(
    extension: str, asked: int, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(extension, failing=1)
    adapters = VllmAdapters(SimpleNamespace(), LoadThreads(lambda folder: None, 1), lambda: "ready")
    adapters.begin(client, asyncio.Event(), None)
    found = [await adapters.untaken(MODULES) for _ in range(3)]
    adapters.close()
    told = frozenset({"lm_head"}) if asked else frozenset()
    assert found == [frozenset(), told, told]
    assert client.asked == asked
    assert ("modules_not_told" in caplog.text) == bool(asked)
