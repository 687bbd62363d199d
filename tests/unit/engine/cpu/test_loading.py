"""Adapters on their way into vLLM's LoRA layers: vLLM's own classes, with our methods in the place of theirs."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from vllm.lora.layers import base_linear
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.layers.column_parallel_linear import (
    MergedColumnParallelLinearVariableSliceWithLoRA,
    MergedColumnParallelLinearWithLoRA,
)
from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import LoRALayerWeights
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.peft_helper import PEFTHelper
from vllm.model_executor.models.utils import WeightsMapper

from amalgam.engine.cpu.factors import ModuleFactors
from amalgam.engine.cpu.loading import check_fit
from amalgam.engine.cpu.module_values import look_up_by_name
from amalgam.engine.cpu.patches import apply
from amalgam.engine.cpu.sources import PlaceholderStack, StoredPair
from tests.adapter_factory import write_lora
from tests.unit.engine.cpu.product_cases import block_diag

WIDTH_IN, WIDTHS, RANK, SLOTS = 24, (16, 16), 8, 3


@pytest.fixture(autouse=True)
def replaced() -> None:
    apply("layers")


def layer_of(kind: Any, **more: Any) -> Any:
    """A layer for gate and up, as far as its LoRA weights go."""
    layer = kind.__new__(kind)
    torch.nn.Module.__init__(layer)
    for name, value in {
        "tp_size": 1, "tp_rank": 0, "input_size": WIDTH_IN, "device": torch.device("cpu"),
        "n_slices": 2, "output_sizes": WIDTHS, "output_slices": WIDTHS, "output_ids": (0, 0),
    }.items():  # fmt: skip
        setattr(layer, name, more.get(name, value))
    config = SimpleNamespace(max_lora_rank=RANK, fully_sharded_loras=False, lora_dtype=torch.float32)
    layer.create_lora_weights(SLOTS, config)
    return layer


def stored(seed: int, *, width: int = 16, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(4, WIDTH_IN, generator=generator).to(dtype)
    return a, torch.randn(width, 4, generator=generator).to(dtype)


def copies(layer: Any, slot: int) -> Any:
    factors = ModuleFactors(layer.lora_a_stacked, layer.lora_b_stacked, torch.float32)
    factors.refresh([])
    return factors.slot(slot)


def test_replacing_twice_replaces_once() -> None:
    kept = LoRAModel.from_local_checkpoint, BaseLinearLayerWithLoRA.set_lora
    apply("layers")
    assert (LoRAModel.from_local_checkpoint, BaseLinearLayerWithLoRA.set_lora) == kept


def test_a_layer_is_given_what_is_stored() -> None:
    layer = layer_of(MergedColumnParallelLinearWithLoRA)
    assert isinstance(layer.lora_a_stacked, PlaceholderStack)
    (a, b), (c, d) = stored(1), stored(2)
    layer.set_lora(1, [a, c], [StoredPair.of(a, b, 0.5), StoredPair.of(c, d, 3.0)])
    got = copies(layer, 1)
    assert got.down.T.equal(torch.cat([a, c]).float())
    assert got.up.equal(block_diag(b.float().T * 0.5, d.float().T * 3))


def test_a_slice_without_factors_and_a_layer_without_any_keep_the_base() -> None:
    layer = layer_of(MergedColumnParallelLinearWithLoRA)
    a, b = stored(1)
    layer.set_lora(1, [None, a], [None, StoredPair.of(a, b, 1.0)])
    [block] = copies(layer, 1).blocks
    assert (block.columns.start, block.columns.stop) == (16, 32)
    layer.set_lora(2, [a, a], [StoredPair.of(a, b, 1.0)] * 2)
    layer.reset_lora(2)
    assert copies(layer, 2) is None


def test_one_module_that_covers_both_slices_is_split_and_scaled() -> None:
    layer = layer_of(MergedColumnParallelLinearWithLoRA)
    a, b = stored(1, width=32)
    pair = StoredPair.of(a, b, 0.25)
    layer.set_lora(0, [pair], [pair])
    got = copies(layer, 0)
    assert got.up.equal(block_diag(b[:16].float().T * 0.25, b[16:].float().T * 0.25))


MISFITS = {
    "inputs": ((4, WIDTH_IN + 1), (16, 4)),
    "outputs": ((4, WIDTH_IN), (17, 4)),
    "ranks": ((4, WIDTH_IN), (16, 5)),
    "too large a rank": ((RANK + 1, WIDTH_IN), (16, RANK + 1)),
}


@pytest.mark.parametrize("shapes", MISFITS.values(), ids=MISFITS.keys())
def test_factors_that_do_not_fit_are_refused_before_a_step_and_never_stored(shapes: Any) -> None:
    layer, (a, b) = layer_of(MergedColumnParallelLinearWithLoRA), map(torch.zeros, shapes)
    with pytest.raises(ValueError, match="do not fit a layer of 24 inputs, 16 outputs"):
        layer.set_lora(0, [None, a], [None, StoredPair.of(a, b, 1.0)])
    assert not layer.lora_a_stacked.contents.pairs
    manager = SimpleNamespace(modules={"gate_up": layer}, packed_modules={"gate_up": ["gate", "up"]})
    right = LoRALayerWeights("gate", 4, 4, *stored(1))
    check_fit(manager, SimpleNamespace(loras={"gate": right}))
    pair = StoredPair.of(a, b, 1.0)
    for factors in ((a, b), (pair, pair)):
        with pytest.raises(ValueError, match="do not fit"):
            check_fit(manager, SimpleNamespace(loras={"gate": right, "up": LoRALayerWeights("up", 4, 4, *factors)}))


def test_factors_that_no_layer_takes_are_an_error_and_not_dropped() -> None:
    manager = SimpleNamespace(modules={"gate_up": object()}, packed_modules={"gate_up": ["gate", "up"]})
    check_fit(manager, SimpleNamespace(loras={"gate": None, "gate_up": None}))
    with pytest.raises(ValueError, match=r"no layer of the model takes the factors of tower\.q_proj"):
        check_fit(manager, SimpleNamespace(loras={"gate": None, "tower.q_proj": None}))


def test_vllms_dummies_come_as_tensors() -> None:
    layer = layer_of(MergedColumnParallelLinearWithLoRA)
    a, b = stored(1, dtype=torch.float32)
    layer.set_lora(0, [a, a], [b, b])
    assert copies(layer, 0).up.equal(block_diag(b.T, b.T))


@pytest.mark.parametrize(
    ("kind", "more"),
    [(MergedColumnParallelLinearVariableSliceWithLoRA, {}), (MergedColumnParallelLinearWithLoRA, {"tp_size": 2})],
    ids=["another kind", "sharded"],
)
def test_other_layers_keep_vllms_stacks(kind: Any, more: Any) -> None:
    layer = layer_of(kind, **more)
    assert not isinstance(layer.lora_a_stacked, PlaceholderStack)
    (a, b), rows = stored(1, dtype=torch.float32), slice(0, 4)
    layer.set_lora(1, [a, a], [b, b])
    assert layer.lora_a_stacked[0][1, 0, rows].equal(a)
    layer.reset_lora(1)
    assert not layer.lora_a_stacked[0].any()


def merged(loras: dict[str, Any]) -> dict[str, Any]:
    """What vLLM's merging step leaves of an adapter: one packed layer is ours, and one is not."""
    ours, theirs = layer_of(MergedColumnParallelLinearWithLoRA), layer_of(MergedColumnParallelLinearWithLoRA, tp_size=2)
    modules = {"layers.0.gate_up_proj": ours, "layers.1.gate_up_proj": theirs}
    packed = {name: [name.replace("gate_up", part) for part in ("gate", "up")] for name in modules}
    manager = SimpleNamespace(
        modules=modules, packed_modules=packed, lora_config=SimpleNamespace(lora_dtype=torch.float32),
        is_pooling_model=False,
        _get_lora_layer_weights=lambda model, name: model.loras.get(name),
    )  # fmt: skip
    model = SimpleNamespace(loras=loras, modules_to_save={}, check_lora_name=lambda name: name in loras)
    LoRAModelManager._create_merged_loras_inplace(manager, model)
    found: dict[str, Any] = model.loras
    return found


@pytest.mark.parametrize("as_stored", [True, False], ids=["a mapped file's", "tensors"])
def test_a_scale_is_kept_for_our_layers_and_multiplied_in_for_others(as_stored: bool) -> None:
    (a, b), (c, d) = stored(1), stored(2)
    ours: tuple[Any, ...]
    theirs: tuple[Any, ...]
    if as_stored:
        ours, theirs = ((pair, pair, 1) for pair in (StoredPair.of(a, b, 1.5), StoredPair.of(c, d, 1.5)))
    else:
        ours, theirs = (a, b), (c.float(), d.float())
    found = merged(
        {
            "layers.0.up_proj": LoRALayerWeights("layers.0.up_proj", 4, 6, *ours),
            "layers.1.gate_proj": LoRALayerWeights("layers.1.gate_proj", 4, 6, *theirs),
        }
    )
    gate, up = found["layers.0.gate_up_proj"].lora_b
    assert gate is None
    assert up.scale == 1.5
    assert up.tensors()[1].equal(b.float() * 1.5)
    other, _ = found["layers.1.gate_up_proj"].lora_b
    assert other.equal(d.float() * 1.5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_lora(tmp_path / "adapter", layers=2, rank=4, alpha=6, modules=("q_proj", "down_proj"))


def loaded(folder: Path, expected: Sequence[str] = ("q_proj", "down_proj"), **more: Any) -> Any:
    helper = PEFTHelper.from_local_dir(str(folder), None)
    return LoRAModel.from_local_checkpoint(
        str(folder), set(expected), helper, lora_model_id=7, device="cpu", dtype=torch.float32, **more
    )


def test_a_checkpoint_is_mapped_with_its_scale_beside_it(folder: Path) -> None:
    model = loaded(folder)
    want = load_file(folder / "adapter_model.safetensors")
    assert (model.id, model.rank, len(model.loras)) == (7, 4, 4)
    for name, weights in model.loras.items():
        assert weights.lora_a is weights.lora_b
        assert (weights.scaling, weights.lora_b.scale) == (1, 1.5)
        a, b = weights.lora_b._replace(scale=1.0).tensors()
        assert a.equal(want[f"base_model.model.{name}.lora_A.weight"].float())
        assert b.equal(want[f"base_model.model.{name}.lora_B.weight"].float())


def test_ranks_and_scales_of_their_own_are_found_by_the_names_in_the_file(folder: Path) -> None:
    """The model calls the modules by other names than the adapter's patterns do."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"alpha_pattern": {"layers.1.mlp.down_proj": 12}}))
    mapper = WeightsMapper(orig_to_new_substr={"mlp.": "mixer."})
    scales = {name: weights.lora_b.scale for name, weights in loaded(folder, weights_mapper=mapper).loras.items()}
    assert scales == {
        "model.layers.0.self_attn.q_proj": 1.5,
        "model.layers.1.self_attn.q_proj": 1.5,
        "model.layers.0.mixer.down_proj": 1.5,
        "model.layers.1.mixer.down_proj": 3.0,
    }


def test_ranks_of_their_own_for_many_modules_are_looked_up_and_never_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge of a model of 80 layers writes a rank and an alpha for each of its 560 modules."""
    folder = write_lora(tmp_path / "many", layers=80, hidden=16, heads_kv_dim=16, intermediate=16, rank=4, alpha=6)
    names = load_file(folder / "adapter_model.safetensors")
    modules = sorted({name.removeprefix("base_model.model.").partition(".lora_")[0] for name in names})
    assert len(modules) == 560
    path = folder / "adapter_config.json"
    alphas = {module: 4 * number + 4 for number, module in enumerate(modules)}
    tables = {"rank_pattern": dict.fromkeys(modules, 4), "alpha_pattern": alphas}
    path.write_text(json.dumps(json.loads(path.read_text()) | tables))
    monkeypatch.setattr(PEFTHelper, "_match_pattern", staticmethod(lambda *_: pytest.fail("each key is compiled")))
    found = loaded(folder, expected=tuple({module.rpartition(".")[2] for module in modules})).loras
    assert {name: weights.lora_b.scale for name, weights in found.items()} == {
        module: alpha / 4 for module, alpha in alphas.items()
    }


TABLES: tuple[dict[str, int], ...] = (
    {},
    {"q_proj": 2, "layers.1.self_attn.q_proj": 8},
    {"layers.1.self_attn.q_proj": 8, "q_proj": 2},
    {r"layers\.[01]\.mlp\.\w+": 3, "proj": 8},
    {"experts.down_proj": 5, "experts.gate_up_proj": 7},
    {"(a+)+b|q_proj": 2},
)
"""The last one is refused at registration, and left to vLLM."""


@pytest.mark.parametrize("alphas", TABLES, ids=str)
@pytest.mark.parametrize("ranks", TABLES, ids=str)
def test_values_that_are_looked_up_are_those_that_vllm_finds(ranks: dict[str, int], alphas: dict[str, int]) -> None:
    theirs, ours = (PEFTHelper(4, 6, ["q_proj"], rank_pattern=ranks, alpha_pattern=alphas) for _ in range(2))
    look_up_by_name(ours)
    block = ("self_attn.q_proj", "mlp.down_proj", "mlp.experts", "mlp.experts.base_layer")
    for module in (f"model.layers.{layer}.{name}" for layer in (0, 1, 10) for name in block):
        assert ours.get_rank_and_scaling(module) == theirs.get_rank_and_scaling(module), module


def test_what_does_not_belong_to_the_model_is_refused_by_vllm_in_its_words(folder: Path) -> None:
    with pytest.raises(ValueError, match="expected target modules"):
        loaded(folder, expected=("q_proj",))


def test_other_types_go_vllms_way(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({name: tensor.double() for name, tensor in load_file(path).items()}, path)
    assert {weights.lora_a.dtype for weights in loaded(folder).loras.values()} == {torch.float32}


def test_a_layer_whose_weight_is_packed_away_is_on_the_processor() -> None:
    """As vLLM's int8 layers are on processors without AMX, whose weight oneDNN keeps."""
    packed = torch.nn.Module()
    packed.register_parameter("weight", None)
    assert base_linear._get_lora_device(packed) == torch.device("cpu")
    plain = torch.nn.Linear(2, 2, device="meta")
    assert base_linear._get_lora_device(plain) == torch.device("meta")
