"""Adapters with random weights, in PEFT's folder format, for tests that need one of a given shape.

Torch-free, so that tests of torch-free modules stay so: the bytes are made with NumPy.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

Dtype = Literal["bfloat16", "float16", "float32"]

_SAFETENSORS_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}

ATTENTION_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_MODULES = ("gate_proj", "up_proj", "down_proj")
ALL_MODULES = (*ATTENTION_MODULES, *MLP_MODULES)


def write_lora(
    folder: Path,
    *,
    layers: int = 30,
    hidden: int = 576,
    heads_kv_dim: int = 192,
    intermediate: int = 1536,
    rank: int = 8,
    alpha: float = 16,
    seed: int = 0,
    std: float = 0.02,
    modules: Sequence[str] = ALL_MODULES,
    dtype: Dtype = "bfloat16",
) -> Path:
    """Write a LoRA adapter of the Llama architecture; the defaults fit SmolLM2-135M.

    Both factors are drawn from N(0, std²), so the adapter has an effect; the same arguments give the same bytes.

    Args:
        folder: Where ``adapter_config.json`` and ``adapter_model.safetensors`` go; made if absent.
        heads_kv_dim: Rows of k_proj and v_proj (key-value heads × head size).
        modules: Which of `ALL_MODULES` carry factors, in every layer.
        dtype: Stored type of the tensors.

    Returns: folder.

    Raises:
        ValueError: A module is not one of `ALL_MODULES`.
    """
    widths = module_widths(hidden=hidden, heads_kv_dim=heads_kv_dim, intermediate=intermediate)
    unknown = [name for name in modules if name not in widths]
    if unknown:
        raise ValueError(f"unknown modules {unknown}; known: {', '.join(widths)}")
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for layer in range(layers):
        for name in modules:
            rows, columns = widths[name]
            prefix = f"base_model.model.model.layers.{layer}.{_block(name)}.{name}"
            tensors[f"{prefix}.lora_A.weight"] = _random(rng, (rank, columns), std)
            tensors[f"{prefix}.lora_B.weight"] = _random(rng, (rows, rank), std)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(encode_safetensors(tensors, dtype))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(modules),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder


def module_widths(*, hidden: int, heads_kv_dim: int, intermediate: int) -> dict[str, tuple[int, int]]:
    """(rows, columns) of each linear module of one Llama layer, by its name."""
    return {
        "q_proj": (hidden, hidden),
        "k_proj": (heads_kv_dim, hidden),
        "v_proj": (heads_kv_dim, hidden),
        "o_proj": (hidden, hidden),
        "gate_proj": (intermediate, hidden),
        "up_proj": (intermediate, hidden),
        "down_proj": (hidden, intermediate),
    }


def _block(module: str) -> str:
    return "self_attn" if module in ATTENTION_MODULES else "mlp"


def encode_safetensors(tensors: dict[str, np.ndarray], dtype: Dtype) -> bytes:
    """One safetensors file: length of the header, the header as JSON, the tensors' bytes end to end.

    Args:
        tensors: float32 arrays by name; stored in this order, rounded to dtype.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    blobs = []
    start = 0
    for name, values in tensors.items():
        blobs.append(_encode(values, dtype))
        end = start + len(blobs[-1])
        header[name] = {
            "dtype": _SAFETENSORS_DTYPES[dtype],
            "shape": list(values.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # readers map the file, so the data begins at a multiple of eight
    return b"".join([len(text).to_bytes(8, "little"), text, *blobs])


def _random(rng: np.random.Generator, shape: tuple[int, int], std: float) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(std)


def _encode(values: np.ndarray, dtype: Dtype) -> bytes:
    if dtype == "bfloat16":
        # Round half to even on the upper 16 bits; the values are finite, so no NaN can be produced.
        bits = np.ascontiguousarray(values).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return values.astype("<f2" if dtype == "float16" else "<f4").tobytes()
