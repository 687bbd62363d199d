"""How llama.cpp names the modules of a model, and in which order it keeps their rows.

Transformers pairs the two halves of a head for rotary embeddings, llama.cpp pairs neighbours in some architectures. Its
converter brings the rows of q and k into that order, so the factors B of an adapter have to follow.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from amalgam.errors.formats import UnsupportedTarget
from amalgam.errors.requests import FieldRefused

MAX_LAYERS: Final = 1024
"""No model has more; names beyond are not looked up."""

_ATTENTION: Final = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_GATED: Final = (*_ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_FUSED: Final = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
_PLAIN: Final = (*_ATTENTION, "mlp.c_fc", "mlp.c_proj")
_HEAD: Final = "lm_head"
_CONFIG: Final = "config.json"


@dataclass(frozen=True, slots=True)
class _Architecture:
    modules: tuple[str, ...] = _GATED
    """They are the linear modules of one layer by their names in transformers."""
    reordered: bool = False
    """It tells whether the rows of q and k are in another order than in transformers."""


ARCHITECTURES: Final = {
    "llama": _Architecture(reordered=True),
    "smollm3": _Architecture(reordered=True),
    "granite": _Architecture(reordered=True),
    "qwen2": _Architecture(),
    "qwen3": _Architecture(),
    "gemma": _Architecture(),
    "gemma2": _Architecture(),
    "gemma3": _Architecture(),
    "olmo2": _Architecture(),
    "phi3": _Architecture(_FUSED),
    "starcoder2": _Architecture(_PLAIN),
}
"""By llama.cpp's name, it has what is known here."""

_MODEL_TYPES: Final = {"mistral": "llama", "gemma3_text": "gemma3", "olmo3": "olmo2"} | {
    name: name for name in ARCHITECTURES if name != "gemma3"
}
"""It maps ``model_type`` of transformers to llama.cpp's name."""


@dataclass(frozen=True, slots=True)
class GgufModel:
    """What of the base model an adapter's file depends on."""

    architecture: str
    """It is a key of `ARCHITECTURES`."""
    heads: int | None = None
    """They are those of attention; None where a file does not say."""
    kv_heads: int | None = None
    """They are those of the keys."""

    @property
    def reorders(self) -> bool:
        """Whether rows of q and k change their order."""
        return ARCHITECTURES[self.architecture].reordered

    def heads_of(self, module: str) -> int | None:
        """Heads whose rows are reordered in the module of that name; 0 where none are, None where that is unknown."""
        if not self.reorders or not module.endswith(_ATTENTION[:2]):
            return 0
        return self.heads if module.endswith(_ATTENTION[0]) else self.kv_heads


def model_of(folder: Path) -> GgufModel:
    """What the config of a base model's folder says.

    Raises:
        FieldRefused: the folder has no config that can be read.
        UnsupportedTarget: the model's kind is not known here.
    """
    path = folder / _CONFIG
    try:
        config = json.loads(path.read_bytes())
        kind, heads = config["model_type"], config.get("num_attention_heads")
        keys = config.get("num_key_value_heads") or heads
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise FieldRefused("base", f"{str(path)!r} is no model's config. Name the folder of the base model") from None
    architecture = _MODEL_TYPES.get(kind) if isinstance(kind, str) else None
    if architecture is None:
        raise UnsupportedTarget("GGUF", f"models of type {str(kind)[:64]!r} have no names for llama.cpp here")
    model = GgufModel(architecture, _positive(heads), _positive(keys))
    if model.reorders and None in (model.heads, model.kv_heads):
        raise FieldRefused("base", f"{str(path)!r} names no numbers of heads. Name the folder of the base model")
    return model


def _positive(value: Any) -> int | None:
    return value if type(value) is int and 0 < value <= 1 << 16 else None


def module_names(architecture: str, layers: int) -> dict[str, str]:
    """Canonical module name -> llama.cpp's, with ``.weight``, of every linear module in ``layers`` layers."""
    import gguf

    number = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(number, layers)
    found = {module: names.get_name(module) for module in _modules(architecture, layers)}
    return {module: f"{name}.weight" for module, name in found.items() if name is not None}


def _modules(architecture: str, layers: int) -> Iterator[str]:
    yield _HEAD
    for layer in range(layers):
        for module in ARCHITECTURES[architecture].modules:
            yield f"model.layers.{layer}.{module}"


def reordered(B: Tensor, heads: int) -> Tensor:
    """Rows [heads, half, pair] of B [out, rank] as [heads, pair, half]: llama.cpp's order from transformers' own.

    Raises:
        ValueError: the rows do not divide into ``heads`` heads of even size.
    """
    return _swapped(B, heads, 2, _half(B, heads))


def restored(B: Tensor, heads: int) -> Tensor:
    """The inverse of `reordered`. Raises ValueError likewise."""
    return _swapped(B, heads, _half(B, heads), 2)


def _half(B: Tensor, heads: int) -> int:
    if heads < 1 or B.shape[0] % (2 * heads):
        raise ValueError
    return B.shape[0] // heads // 2


def _swapped(B: Tensor, heads: int, outer: int, inner: int) -> Tensor:
    return B.reshape(heads, outer, inner, B.shape[1]).transpose(1, 2).reshape(B.shape)
