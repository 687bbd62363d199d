"""Odd adapter folders against PEFT and against vLLM's own reader: what is stored of them both read, and alike."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from amalgam.domain.adapter import BaseModelSpec
from amalgam.store.adapter_store import AdapterStore
from amalgam.store.canonical_folder import make_canonical
from amalgam.store.peft_folder import read_peft_folder
from amalgam.store.tensor_files import open_tensors
from tests.unit.store.test_folder_roads import PREFIX, base, store
from tests.unit.store.test_odd_folders import NOT_PEFTS, TAKEN, Make, of_eight, one_layer, ranked
from tests.unit.store.tiny_base import HIDDEN, INTERMEDIATE, LAYERS, VOCABULARY

__all__ = ["base", "store"]  # fixtures

peft = pytest.importorskip("peft")

OF_MODULES: dict[str, Make] = {"ranked": ranked, "one layer": one_layer, "of eight": of_eight}
FOLDERS: Mapping[str, Make] = {name: make for name, (make, _) in TAKEN.items()} | OF_MODULES
ROUNDING = 1e-6
"""float32 products of order 1, summed in another order than float64's."""


def tiny_llama() -> Any:
    shape = {"hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS}
    config = LlamaConfig(vocab_size=VOCABULARY, num_attention_heads=2, num_key_value_heads=1, **shape)
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def stored(tmp_path: Path, store: AdapterStore, base: BaseModelSpec) -> Callable[[Make], tuple[Path, Path]]:
    """Makes a folder and publishes it as the server does: the folder, and where it is stored."""

    def publish(make: Make) -> tuple[Path, Path]:
        folder = tmp_path / "folder"
        make(folder)
        with store.stage() as staging:
            for path in folder.iterdir():
                if path.is_file():
                    staging.receive(path.name, [path.read_bytes()])
            found = read_peft_folder(staging.folder, base)
            found.require()
            make_canonical(staging, found)
            return folder, store.path(store.publish(staging).digest)

    return publish


def ours(folder: Path) -> dict[str, torch.Tensor]:
    opened = open_tensors(folder, read_peft_folder(folder, None).require())
    found = {}
    for name, module in opened.header.modules.items():
        a, b = opened.factors(name)
        found[name] = module.scaling * (b.double() @ a.double())
    return found


def pefts(folder: Path) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of keys that it does not know
        model = peft.PeftModel.from_pretrained(tiny_llama(), folder)
    deltas = {
        name.removeprefix(PREFIX): module.get_delta_weight("default").double()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight") and "default" in module.lora_A
    }
    return {name: delta for name, delta in deltas.items() if delta.any()}


@pytest.mark.parametrize("name", [name for name in FOLDERS if name != "a task of its own"])
def test_peft_reads_the_same_of_what_is_stored(name: str, stored: Any) -> None:
    given, kept = stored(FOLDERS[name])
    wanted, found = ours(kept), pefts(kept)
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[module], wanted[module], rtol=0, atol=ROUNDING * 100) for module in wanted)
    if name in NOT_PEFTS:
        return
    as_given = pefts(given)
    if "modules_not_named" in TAKEN.get(name, (None, set()))[1]:
        assert as_given.keys() < wanted.keys(), "the warning says that PEFT leaves some out"
    else:
        assert as_given.keys() == wanted.keys()
    assert all(torch.equal(as_given[module], found[module]) for module in as_given)


@pytest.mark.parametrize("name", FOLDERS)
def test_vllms_reader_takes_what_is_stored(name: str, stored: Any, base: BaseModelSpec) -> None:
    """Refused there it would be refused by the engine, after the server has said that it is sound."""
    helper = pytest.importorskip("vllm.lora.peft_helper")
    config = pytest.importorskip("vllm.config.lora")
    _, kept = stored(FOLDERS[name])
    read = helper.PEFTHelper.from_local_dir(str(kept), None)
    read.validate_legal(config.LoRAConfig(max_lora_rank=16))
    for module, header in read_peft_folder(kept, base).require().modules.items():
        assert read.get_rank_and_scaling(module) == pytest.approx((header.rank, header.scaling))
