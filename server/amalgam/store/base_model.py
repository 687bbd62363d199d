"""Knows a base model from its config and its weight files' headers: which linear modules it has, and of what shapes."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from amalgam.domain.adapter import BaseModelSpec
from amalgam.store.checkpoint_tensors import CONFIG, checkpoint_tensors, read_json
from amalgam.store.meta_model import meta_shapes

_CONFIG_FIELDS: Final = (
    "architectures", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "vocab_size", "hidden_act", "tie_word_embeddings",
)  # fmt: skip
"""What makes two models of equal shapes different architectures. Fields that a re-save may spell anew stay out."""


def base_spec(model_dir: Path, served_name: str, max_lora_rank: int) -> BaseModelSpec:
    """Describe the base model in ``model_dir`` without reading a weight.

    Its linear modules are the two-dimensional ``.weight`` tensors of its safetensors files (one file, or many and an
    index), or, in a folder without such files, of the model that its config describes.

    Raises:
        BaseModelUnreadable: no config, files that do not belong together, or an architecture that cannot be known.
    """
    config = read_json(model_dir / CONFIG)
    shapes = _read_shapes(model_dir)
    return BaseModelSpec(
        served_name=served_name,
        fingerprint=fingerprint(config, shapes),
        linear_shapes=_linear_shapes(shapes),
        max_lora_rank=max_lora_rank,
        vocabulary_size=_vocabulary_size(config),
    )


def fingerprint(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """SHA-256, in hex, over the architecture's fields of ``config`` and every tensor's name and shape.

    Precision, file layout and the weights' values do not count: an adapter fits all models of one fingerprint.
    """
    described = {
        "config": {field: config[field] for field in _CONFIG_FIELDS if config.get(field) is not None},
        "tensors": [[name, list(shapes[name])] for name in sorted(shapes)],
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """Of the model, or of the part of it that reads text."""
    inner = config.get("text_config")
    for section in (config, inner if isinstance(inner, dict) else {}):
        size = section.get("vocab_size")
        if isinstance(size, int) and size > 0:
            return size
    return None


def _linear_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
    return {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2
    }


def _read_shapes(model_dir: Path) -> dict[str, tuple[int, ...]]:
    tensors = checkpoint_tensors(model_dir)
    if tensors is None:
        return meta_shapes(model_dir)
    return {name: tensor.span.shape for name, tensor in tensors.items()}
