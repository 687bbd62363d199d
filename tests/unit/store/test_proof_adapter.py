"""The adapter that an engine is tried with: it fits the base model that it is made for."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from amalgam.store.base_model import base_spec
from amalgam.store.peft_folder import read_peft_folder
from amalgam.store.proof_adapter import proof_adapter

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
NAMES = {
    "text": [f"model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in ATTENTION],
    "pictures": ["model.vision_tower.layers.0.self_attn.q_proj", "model.language_model.layers.0.self_attn.q_proj"],
    "experts": ["model.layers.0.mlp.experts.0.down_proj", "model.layers.0.mlp.gate", "model.layers.0.self_attn.q_proj"],
    "no attention": ["lm_head", "backbone.layers.0.mixer.in_proj", "backbone.layers.0.mixer.x_proj"],
}
CHOSEN = {
    "text": NAMES["text"][:4],
    "pictures": NAMES["pictures"][1:],
    "experts": NAMES["experts"][2:],
    "no attention": NAMES["no attention"][1:2],
}


def written(folder: Path, names: list[str]) -> Path:
    folder.mkdir()
    config = {"model_type": "tiny"}
    if any("vision" in name for name in names):
        config |= {"text_config": {}, "vision_config": {}}  # type: ignore[dict-item]
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {f"{name}.weight": torch.ones(12, 8) for name in ["model.embed_tokens", *names]}, folder / "model.safetensors"
    )
    return folder


@pytest.mark.parametrize("kind", NAMES)
def test_it_is_for_one_attention_of_the_language_model_and_is_sound(kind: str, tmp_path: Path) -> None:
    model = written(tmp_path / "base", NAMES[kind])
    with proof_adapter(model) as folder:
        assert folder is not None
        found = read_peft_folder(folder, base_spec(model, "tiny", 8))
        assert found.errors == ()
        assert sorted(found.require().modules) == sorted(CHOSEN[kind])
    assert not folder.exists()


def test_a_model_without_linear_modules_has_none(tmp_path: Path) -> None:
    with proof_adapter(written(tmp_path / "base", [])) as folder:
        assert folder is None
