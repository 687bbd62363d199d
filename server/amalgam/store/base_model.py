"""Knows a base model from its config and its weight files' headers: which linear modules it has, and of what shapes."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from amalgam.domain.adapter import BaseModelSpec
from amalgam.domain.delta_bound import MAX_DELTA_RATIO, DeltaBound
from amalgam.store.base_norms import delta_bound
from amalgam.store.checkpoint_tensors import CONFIG, checkpoint_tensors, read_json
from amalgam.store.linear_modules import linear_modules, plain_modules
from amalgam.store.meta_model import meta_shapes
from amalgam.store.module_names import HEARING, renaming

_CONFIG_FIELDS: Final = (
    "architectures", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "vocab_size", "hidden_act", "tie_word_embeddings",
)  # fmt: skip
"""They make two models of equal shapes different architectures. Fields that a re-save may spell anew stay out."""

_MEDIA_CONFIGS: Final[Mapping[str, str]] = {"vision_config": "image"} | dict.fromkeys(HEARING, "audio")
"""It maps parts of a config beside that of the text to the medium that is read by what they describe."""


def base_spec(
    model_dir: Path, served_name: str, max_lora_rank: int, max_delta_ratio: float = MAX_DELTA_RATIO
) -> BaseModelSpec:
    """Describe the base model in ``model_dir`` without reading a weight.

    Its linear modules are those of its safetensors files (one file, or many and an index), plain or quantised, or, in a
    folder without such files, of the model that its config describes.

    Args:
        max_delta_ratio: see `DeltaBound`.

    Raises:
        BaseModelUnreadable: no config, files that do not belong together, or an architecture that cannot be known.
    """
    config = read_json(model_dir / CONFIG)
    tensors = checkpoint_tensors(model_dir)
    fused: frozenset[str] = frozenset()
    if tensors is None:
        shapes = meta_shapes(model_dir)
        linear_shapes = plain_modules(config, shapes)
    else:
        shapes = {name: tensor.span.shape for name, tensor in tensors.items()}
        linear = linear_modules(model_dir, config, tensors)
        linear_shapes = {name: one.shape for name, one in linear.items()}
        fused = frozenset(name for name, one in linear.items() if one.expert is not None)
    return BaseModelSpec(
        served_name=served_name,
        fingerprint=fingerprint(config, shapes),
        linear_shapes=linear_shapes,
        max_lora_rank=max_lora_rank,
        vocabulary_size=_size(config, "vocab_size"),
        context_tokens=_size(config, "max_position_embeddings"),
        delta_bound=DeltaBound(max_delta_ratio)
        if tensors is None
        else delta_bound(model_dir, max_delta_ratio, tensors),
        folder=model_dir,
        rename=renaming(config, shapes),
        fused=fused,
        reads=_media(config),
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


def _media(config: Mapping[str, Any]) -> frozenset[str]:
    parts = [part for part in _MEDIA_CONFIGS if isinstance(config.get(part), dict)]
    if not isinstance(config.get("text_config"), dict):
        parts = [part for part in parts if part != "encoder_config"]
    return frozenset(_MEDIA_CONFIGS[part] for part in parts)


def _size(config: Mapping[str, Any], field: str) -> int | None:
    """The positive integer in ``field`` of the model's config, or of the part of it that reads text."""
    inner = config.get("text_config")
    for section in (config, inner if isinstance(inner, dict) else {}):
        size = section.get(field)
        if isinstance(size, int) and size > 0:
            return size
    return None
