"""A base model of a few kilobytes, and adapters that fit it."""

import json
from pathlib import Path

import numpy as np

from amalgam.domain.adapter import BaseModelSpec
from amalgam.store.base_model import base_spec
from tests.adapter_factory import ATTENTION_MODULES, encode_safetensors, module_widths, write_lora

LAYERS, HIDDEN, KEY_VALUES, INTERMEDIATE, VOCABULARY = 2, 16, 8, 24, 32

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}


def base_tensors() -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {"model.embed_tokens.weight": np.ones((VOCABULARY, HIDDEN), np.float32)}
    widths = module_widths(hidden=HIDDEN, heads_kv_dim=KEY_VALUES, intermediate=INTERMEDIATE)
    for layer in range(LAYERS):
        for module, shape in widths.items():
            block = "self_attn" if module in ATTENTION_MODULES else "mlp"
            tensors[f"model.layers.{layer}.{block}.{module}.weight"] = np.ones(shape, np.float32)
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = np.ones(HIDDEN, np.float32)
    return tensors


def write_base(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(encode_safetensors(base_tensors(), "bfloat16"))
    return folder


def tiny_spec(folder: Path, *, served_name: str = "tiny", max_lora_rank: int = 16) -> BaseModelSpec:
    return base_spec(write_base(folder), served_name, max_lora_rank)


def fitting_adapter(folder: Path, **changes: object) -> Path:
    shape: dict[str, object] = {
        "layers": LAYERS,
        "hidden": HIDDEN,
        "heads_kv_dim": KEY_VALUES,
        "intermediate": INTERMEDIATE,
        "rank": 4,
        "alpha": 8,
    }
    return write_lora(folder, **(shape | changes))  # type: ignore[arg-type]
