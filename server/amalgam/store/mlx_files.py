"""Adapters as mlx-lm keeps them: ``lora_a`` [in, rank] and ``lora_b`` [rank, out], one scale and one rank for all.

y = x·W + scale·(x·lora_a)·lora_b, so that A = lora_aᵀ and B = lora_bᵀ in PEFT's meaning.
"""

import json
import math
import re
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from amalgam.domain.adapter import AdapterHeader
from amalgam.domain.recipe import layer_of
from amalgam.errors.formats import UnsupportedTarget
from amalgam.errors.merging import NonFinite, UnsupportedFormat
from amalgam.store.loaded_tensors import (
    DTYPE_NAMES,
    TEXT_MODEL,
    LoadedTensors,
    Readable,
    header_of,
    matched,
    padded,
)
from amalgam.store.tensor_files import CONFIG, file_digest, load_checked

WEIGHTS: Final = "adapters.safetensors"
_ALL_LAYERS: Final = -1
_ELSEWHERE: Final = re.compile(r"(^|\.)(experts\.\d+|visual|vision_\w+|audio_\w+|multi_modal_projector)\.")
"""A layer's experts are in one module in mlx-lm, which reads the part of a model that is for text."""


def is_mlx(folder: Path) -> bool:
    """Whether the folder's weights have the name that mlx-lm gives them."""
    return (folder / WEIGHTS).is_file()


def open_mlx(adapter: str, folder: Path) -> LoadedTensors:
    """Read a folder of mlx-lm.

    Args:
        adapter: Its name, for errors.
        folder: Holds `WEIGHTS` and the config beside it.

    Raises:
        UnsupportedFormat: no LoRA, or a tensor that LoRA does not have.
        NonFinite: a tensor holds NaN or infinity.
        InvalidSafetensors: the weights are none.
        OSError: a file cannot be read.
    """
    scale = _scale(adapter, folder / CONFIG)
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_checked(folder / WEIGHTS).items():
        module, _, factor = name.rpartition(".")
        if factor not in ("lora_a", "lora_b") or tensor.dim() != 2 or tensor.dtype not in DTYPE_NAMES:
            raise UnsupportedFormat(adapter, "MLX", f"the tensor {name[:128]!r} has no place in plain LoRA")
        if not bool(torch.isfinite(tensor).all()):
            raise NonFinite(adapter, module)
        found.setdefault(module, {})[factor] = tensor.mT.contiguous()
    pairs = matched(adapter, "MLX", found, ("lora_a", "lora_b"))
    header = header_of(pairs, lambda _: scale, task_type=TEXT_MODEL)
    return LoadedTensors(header, file_digest(folder / WEIGHTS), pairs)


def _scale(adapter: str, path: Path) -> float:
    try:
        config = json.loads(path.read_bytes())
        kind = config.get("fine_tune_type", "lora")
        scale = float(config["lora_parameters"]["scale"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, FileNotFoundError):
        scale, kind = math.nan, "lora"
    if kind != "lora":
        raise UnsupportedFormat(adapter, "MLX", f"it was trained as {str(kind)[:32]!r}")
    if not math.isfinite(scale):
        raise UnsupportedFormat(adapter, "MLX", f"its {CONFIG} says no scale in lora_parameters")
    return scale


def write_mlx(folder: Path, source: Readable) -> None:
    """Write an adapter as mlx-lm reads it: scales in ``lora_b``, all modules at the largest rank, float32.

    Raises:
        UnsupportedTarget: mlx-lm has no module of a name; it would leave it out without a word.
        OSError: the folder cannot be written.
    """
    unnamed = next((name for name in sorted(source.header.modules) if _ELSEWHERE.search(name)), None)
    if unnamed is not None:
        raise UnsupportedTarget("MLX", f"mlx-lm has no module {unnamed[:128]}")
    tensors: dict[str, Tensor] = {}
    for name, A, B in padded(source):
        tensors[f"{name}.lora_a"] = A.mT.contiguous()
        tensors[f"{name}.lora_b"] = B.mT.contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "mlx"})
    text = json.dumps(_config(source.header), indent=2, sort_keys=True) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


def _config(header: AdapterHeader) -> dict[str, Any]:
    # mlx-lm names modules from their layer on, and those outside of all layers by their whole names.
    keys = {name if (layer := layer_of(name)) is None else name.split(f".{layer}.", 1)[1] for name in header.modules}
    parameters = {"rank": header.rank, "scale": 1.0, "dropout": 0.0, "keys": sorted(keys)}
    return {
        "fine_tune_type": "lora",
        "model": header.base_model or "",
        # Layers are counted from the last one, and how many the model has is not known here.
        "num_layers": _ALL_LAYERS,
        "lora_parameters": parameters,
    }
