"""What is known of a base model without reading a weight."""

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from amalgam.errors.adapters import BaseModelUnreadable
from amalgam.store.base_model import base_spec, fingerprint
from tests.adapter_factory import encode_safetensors
from tests.unit.store.tiny_base import CONFIG, base_tensors, write_base


def test_linear_modules_and_their_shapes(tmp_path: Path) -> None:
    spec = base_spec(write_base(tmp_path), "tiny", 16)
    assert spec.linear_shapes["model.layers.1.self_attn.k_proj"] == (8, 16)
    assert spec.linear_shapes["model.layers.0.mlp.down_proj"] == (16, 24)
    assert "model.layers.0.input_layernorm" not in spec.linear_shapes
    assert len(spec.linear_shapes) == 2 * 7 + 1
    assert (spec.served_name, spec.max_lora_rank) == ("tiny", 16)


def test_shards_make_the_same_model(tmp_path: Path) -> None:
    whole = base_spec(write_base(tmp_path / "whole"), "tiny", 16)
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    tensors = base_tensors()
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[:5], names[5:])):
        file = f"model-{number}.safetensors"
        (sharded / file).write_bytes(encode_safetensors({name: tensors[name] for name in part}, "float32"))
        weight_map |= dict.fromkeys(part, file)
    (sharded / "config.json").write_text(json.dumps({**CONFIG, "dtype": "float32", "transformers_version": "9"}))
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    found = base_spec(sharded, "tiny", 16)
    assert found.linear_shapes == whole.linear_shapes
    assert found.fingerprint == whole.fingerprint

    index.write_text(json.dumps({"weight_map": {**weight_map, "model.norm.weight": "model-0.safetensors"}}))
    with pytest.raises(BaseModelUnreadable, match=r"model\.norm\.weight"):
        base_spec(sharded, "tiny", 16)


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", 3, None])
def test_an_index_names_files_of_its_own_folder(file: object, tmp_path: Path) -> None:
    write_base(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(BaseModelUnreadable, match="does not map"):
        base_spec(tmp_path, "tiny", 16)


def test_fingerprint_depends_on_architecture_names_and_shapes() -> None:
    shapes = {"a.weight": (2, 3), "b.weight": (3,)}
    known = fingerprint(CONFIG, shapes)
    assert len(known) == 64
    assert fingerprint(dict(reversed(CONFIG.items())), dict(reversed(shapes.items()))) == known
    assert fingerprint({**CONFIG, "dtype": "float32"}, shapes) == known
    assert fingerprint({**CONFIG, "model_type": "mistral"}, shapes) != known
    assert fingerprint(CONFIG, {**shapes, "a.weight": (3, 2)}) != known
    assert fingerprint(CONFIG, {**shapes, "c.weight": (1,)}) != known


def test_unreadable_folders_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BaseModelUnreadable, match=r"config\.json"):
        base_spec(tmp_path, "tiny", 16)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(BaseModelUnreadable, match="not a JSON object"):
        base_spec(tmp_path, "tiny", 16)
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "model_type": "no-such-architecture"}))
    with pytest.raises(BaseModelUnreadable, match="no safetensors files"):
        base_spec(tmp_path, "tiny", 16)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(BaseModelUnreadable, match=r"model\.safetensors"):
        base_spec(tmp_path, "tiny", 16)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_without_safetensors_is_known_by_its_config(tied: bool, tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    with_files = base_spec(tmp_path, "tiny", 16)
    weights.unlink()
    from_config = base_spec(tmp_path, "tiny", 16)
    assert from_config == with_files
    assert ("lm_head" in from_config.linear_shapes) is not tied
