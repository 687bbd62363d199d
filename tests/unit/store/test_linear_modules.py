"""What is known of the linear modules of a checkpoint, plain or quantised, without reading a weight."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from amalgam.errors.adapters import BaseModelUnreadable
from amalgam.store.checkpoint_tensors import checkpoint_tensors
from amalgam.store.linear_modules import LinearModule, linear_modules
from amalgam.store.module_names import renaming
from tests.models.packings import PACKINGS

WEIGHT = torch.randn(96, 64)


def modules_of(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> dict[str, LinearModule]:
    save_file(tensors, folder / "model.safetensors")
    found = checkpoint_tensors(folder)
    assert found is not None
    return linear_modules(folder, config, found)


@pytest.mark.parametrize("method", PACKINGS)
@pytest.mark.parametrize("shape", [(96, 64), (64, 64), (32, 128), (8, 32)])
def test_packed_weights_have_the_shape_of_what_was_packed(method: str, shape: tuple[int, int], tmp_path: Path) -> None:
    module = "model.layers.0.mlp.up_proj"
    found = modules_of(tmp_path, PACKINGS[method](module, torch.randn(shape)))
    assert found == {module: LinearModule(module, shape, is_packed=True)}


def test_gptq_without_the_order_of_inputs_is_told_by_its_zero_points(tmp_path: Path) -> None:
    tensors = PACKINGS["gptq"]("a", WEIGHT)
    del tensors["a.g_idx"]
    assert modules_of(tmp_path, tensors)["a"].shape == (96, 64)


def test_three_bits_do_not_divide_a_word(tmp_path: Path) -> None:
    tensors = {
        "a.qweight": torch.zeros((64 * 3 // 32, 96), dtype=torch.int32),
        "a.qzeros": torch.zeros((2, 96 * 3 // 32), dtype=torch.int32),
        "a.scales": torch.zeros((2, 96), dtype=torch.float16),
    }
    assert modules_of(tmp_path, tensors)["a"].shape == (96, 64)


@pytest.mark.parametrize(
    ("method", "lost"),
    [("gptq", "scales"), ("compressed-tensors", "weight_shape"), ("awq", "scales")],
)
def test_a_packed_weight_whose_shape_cannot_be_known_is_named(method: str, lost: str, tmp_path: Path) -> None:
    tensors = PACKINGS[method]("model.a", WEIGHT)
    del tensors[f"model.a.{lost}"]
    with pytest.raises(BaseModelUnreadable, match=r"model\.a"):
        modules_of(tmp_path, tensors)


@pytest.mark.parametrize("shape", [[1, 64], [96, 10_000], [96, -64]])
def test_a_shape_that_does_not_fit_the_packed_weight_is_not_believed(shape: list[int], tmp_path: Path) -> None:
    tensors = PACKINGS["compressed-tensors"]("a", WEIGHT) | {"a.weight_shape": torch.tensor(shape)}
    with pytest.raises(BaseModelUnreadable, match="does not fit"):
        modules_of(tmp_path, tensors)


@pytest.mark.parametrize("state", [b"{}", b"nonsense", b'{"shape": [1, 2, 3]}', b'{"shape": "ab"}'])
def test_a_state_that_says_no_shape_is_an_error_of_ours(state: bytes, tmp_path: Path) -> None:
    tensors = PACKINGS["bitsandbytes"]("a", WEIGHT)
    tensors["a.weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(state), dtype=torch.uint8)
    with pytest.raises(BaseModelUnreadable, match="shape"):
        modules_of(tmp_path, tensors)


def test_weights_of_conv1d_are_stored_the_other_way_round(tmp_path: Path) -> None:
    tensors = {"transformer.h.0.attn.c_attn.weight": torch.zeros(64, 192), "lm_head.weight": torch.zeros(128, 64)}
    found = modules_of(tmp_path, tensors, model_type="gpt2")
    assert found["transformer.h.0.attn.c_attn"] == LinearModule("transformer.h.0.attn.c_attn", (192, 64), True)
    assert found["lm_head"] == LinearModule("lm_head", (128, 64))


def test_a_checkpoint_of_the_model_without_its_head_gets_the_whole_models_names(tmp_path: Path) -> None:
    found = modules_of(tmp_path, {"h.0.mlp.c_fc.weight": torch.zeros(64, 256)}, model_type="gpt2")
    assert found == {"transformer.h.0.mlp.c_fc": LinearModule("h.0.mlp.c_fc", (256, 64), True)}


VISION: dict[str, Any] = {"text_config": {}, "vision_config": {}}


@pytest.mark.parametrize(
    ("older", "today"),
    [
        ("language_model.model.layers.0.mlp.up_proj", "model.language_model.layers.0.mlp.up_proj"),
        ("model.layers.0.mlp.up_proj", "model.language_model.layers.0.mlp.up_proj"),
        ("model.embed_tokens", "model.language_model.embed_tokens"),
        ("language_model.lm_head", "lm_head"),
        ("visual.blocks.0.attn.qkv", "model.visual.blocks.0.attn.qkv"),
        ("multi_modal_projector.linear_1", "model.multi_modal_projector.linear_1"),
    ],
)
def test_both_generations_of_names_of_a_vision_language_model_are_one(older: str, today: str) -> None:
    rename = renaming(VISION, ())
    assert rename(older) == today
    assert rename(today) == today


def test_names_of_a_text_model_stay() -> None:
    name = "model.layers.0.mlp.up_proj"
    assert renaming({"model_type": "llama"}, ())(name) == name
    assert renaming({"text_config": {}}, ())(name) == name
