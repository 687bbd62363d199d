"""Staged adapters mean what the stored ones mean, to PEFT's reading of both configs."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from amalgam.errors.adapters import InvalidAdapter
from amalgam.store import staged_adapters
from amalgam.store.peft_folder import read_peft_folder
from amalgam.store.staged_adapters import staged_size, write_staged
from tests.adapter_factory import encode_safetensors, write_lora

RANKS = {"model.layers.0.self_attn.q_proj": 3, "model.layers.0.mlp.up_proj": 5}
PREFIX = "base_model.model."


def scales(folder: Path) -> dict[str, float]:
    return {name: module.scaling for name, module in read_peft_folder(folder, None).require().modules.items()}


def stored(folder: Path, dtype: str, config: dict[str, object]) -> dict[str, np.ndarray]:
    """An adapter with two modules of different ranks; its values, as stored, in float32."""
    chance = np.random.default_rng(7)
    tensors = {}
    for module, rank in RANKS.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = chance.standard_normal((rank, 300)).astype(np.float32)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = chance.standard_normal((700, rank)).astype(np.float32)
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(encode_safetensors(tensors, dtype))  # type: ignore[arg-type]
    plain = {"peft_type": "LORA", "base_model_name_or_path": "", "r": 3, "lora_alpha": 7, "bias": "none",
             "target_modules": ["q_proj", "up_proj"], "rank_pattern": {"up_proj": 5}}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(plain | config))
    kept = np.float16 if dtype == "float16" else np.float32
    values = {name: tensor.astype(kept).astype(np.float32) for name, tensor in tensors.items()}
    if dtype == "bfloat16":
        import torch

        values = {name: torch.from_numpy(tensor).bfloat16().float().numpy() for name, tensor in values.items()}
    return values


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("config", [{}, {"use_rslora": True}, {"alpha_pattern": {"up_proj": 2}}])
def test_the_scale_moves_into_b_and_nothing_else_changes(tmp_path: Path, dtype: str, config: dict[str, object]) -> None:
    values = stored(tmp_path / "stored", dtype, config)
    write_staged(tmp_path / "stored", tmp_path / "staged")
    staged = load_file(tmp_path / "staged" / "adapter_model.safetensors")
    own = scales(tmp_path / "stored")
    assert staged.keys() == values.keys()
    for name, tensor in staged.items():
        module, _, factor = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        scale = np.float32(own[module] if factor == "lora_B" else 1)
        assert tensor.dtype == np.float32
        assert np.array_equal(tensor, values[name] * scale)
    assert scales(tmp_path / "staged") == dict.fromkeys(own, 1.0)


def test_tensors_longer_than_a_chunk_come_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged_adapters, "_CHUNK_BYTES", 64)
    values = stored(tmp_path / "stored", "float16", {"lora_alpha": 3, "alpha_pattern": {"up_proj": 5}})
    write_staged(tmp_path / "stored", tmp_path / "staged")
    staged = load_file(tmp_path / "staged" / "adapter_model.safetensors")
    assert all(np.array_equal(staged[name], tensor) for name, tensor in values.items())


def test_the_size_is_not_below_what_is_written(tmp_path: Path) -> None:
    write_lora(tmp_path / "stored", rank=8, seed=1, dtype="bfloat16")
    write_staged(tmp_path / "stored", tmp_path / "staged")
    assert (tmp_path / "staged" / "adapter_model.safetensors").stat().st_size <= staged_size(tmp_path / "stored")


def test_copies_of_base_weights_are_left_out(tmp_path: Path) -> None:
    values = stored(tmp_path / "stored", "float32", {})
    copy = {f"{PREFIX}model.embed_tokens.base_layer.weight": np.ones((9, 300), dtype=np.float32)}
    weights = tmp_path / "stored" / "adapter_model.safetensors"
    weights.write_bytes(encode_safetensors(values | copy, "float32"))
    write_staged(tmp_path / "stored", tmp_path / "staged")
    assert load_file(tmp_path / "staged" / "adapter_model.safetensors").keys() == values.keys()


def test_damaged_files_are_refused_and_not_staged(tmp_path: Path) -> None:
    write_lora(tmp_path / "stored", rank=2, seed=1)
    weights = tmp_path / "stored" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(InvalidAdapter):
        write_staged(tmp_path / "stored", tmp_path / "staged")
    assert not (tmp_path / "staged").exists()
