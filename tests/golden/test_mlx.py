"""mlx-lm's folders: what is written names every module where mlx-lm looks for it, and what it has not is refused."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from amalgam.errors.formats import UnsupportedTarget
from amalgam.store.loaded_tensors import LoadedTensors, header_of
from amalgam.store.mlx_files import open_mlx, write_mlx

LAYERS = 6


def adapter(*names: Any) -> Any:
    generator = torch.Generator().manual_seed(3)
    pairs = {name: (torch.randn(2, 8, generator=generator), torch.randn(5, 2, generator=generator)) for name in names}
    return LoadedTensors(header_of(pairs, lambda _: 0.5, "/models/base"), "0" * 64, pairs)


def adapted_by_mlx(config: dict[str, Any]) -> Any:
    """mlx-lm's rule: ``keys`` in the last ``num_layers`` layers, all where that is -1; then ``keys`` by whole name."""
    layers = list(range(LAYERS))[-max(config["num_layers"], 0) :]
    keys = config["lora_parameters"]["keys"]
    return {f"model.layers.{layer}.{key}" for layer in layers for key in keys} | set(keys)


@pytest.mark.parametrize("names", [
    ["model.layers.0.self_attn.q_proj"],
    ["model.layers.1.mlp.up_proj", "model.layers.3.self_attn.v_proj"],
    [f"model.layers.{LAYERS - 1}.self_attn.q_proj", "lm_head"],
], ids=str)  # fmt: skip
def test_mlx_finds_every_module_whichever_layers_have_one(names: Sequence[str], tmp_path: Path) -> None:
    given = adapter(*names)
    write_mlx(tmp_path, given)
    assert set(names) <= adapted_by_mlx(json.loads((tmp_path / "adapter_config.json").read_text()))
    read = open_mlx("x", tmp_path)
    for name in names:
        (A, B), (a, b) = given.factors(name), read.factors(name)
        scale = read.header.modules[name].scaling
        assert torch.allclose(scale * (b @ a), 0.5 * (B @ A), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [
    "model.layers.0.mlp.experts.3.up_proj",
    "model.visual.blocks.0.attn.qkv",
    "vision_tower.encoder.layers.0.self_attn.q_proj",
    "model.vision_model.layers.1.mlp.fc1",
    "audio_tower.layers.0.fc1",
    "multi_modal_projector.linear_1",
])  # fmt: skip
def test_what_mlx_would_leave_out_without_a_word_is_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedTarget, match=re.escape(name)):
        write_mlx(tmp_path / "out", adapter("model.layers.0.self_attn.q_proj", name))
    assert not (tmp_path / "out").exists()
