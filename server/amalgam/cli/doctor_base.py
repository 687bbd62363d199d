"""What `amalgam doctor` says of the folder of a base model by its files: what it is, and what its weights take."""

import math
from pathlib import Path
from typing import Final

from amalgam.domain.adapter import BaseModelSpec
from amalgam.store.base_folder import why_incomplete
from amalgam.store.checkpoint_tensors import CONFIG, checkpoint_tensors, read_json
from amalgam.store.file_rules import CONFIG_FILE

_PICKLED: Final = ("*.bin", "*.pt", "*.pth")
_WIDTHS: Final = {"float32": 4, "float64": 8}
"""By the type that a config names, it has the bytes of an entry; any other has two."""
_MIB: Final = 1 << 20
_GIB: Final = 1 << 30


def why_no_base(model: Path) -> str | None:
    """Why ``model`` is not a folder that holds a base model, with what to do; None where it is one."""
    if not model.exists():
        return f"{model} does not exist. Give the folder of a base model"
    if not model.is_dir():
        return f"{model} is a file. Give the folder with config.json and safetensors{_instead_of_gguf(model.suffix)}"
    if not (model / CONFIG).is_file():
        if (model / CONFIG_FILE).is_file():
            return f"{model} is an adapter. Give the folder of its base model first and this one after it"
        if any(model.glob("*.gguf")):
            return f"{model} has GGUF and no {CONFIG}. Give the folder of the same model in safetensors"
        return f"{model} lacks {CONFIG}. Fetch the model's whole repository"
    if any(model.glob("*.safetensors")):
        lacks = why_incomplete(model)
        return None if lacks is None else f"{model} {lacks}"
    if any(found for pattern in _PICKLED for found in model.glob(pattern)):
        return f"{model} has its weights in a format that can run code. Convert them to safetensors"
    return f"{model} has {CONFIG} and lacks safetensors, the weights. Fetch the model's whole repository"


def _instead_of_gguf(suffix: str) -> str:
    return "; GGUF is read for the demo model alone" if suffix.lower() == ".gguf" else ""


def weight_bytes(model: Path, base: BaseModelSpec) -> int:
    """What the weights take: as they are stored, or, without their files, what the matrices of the config come to."""
    tensors = checkpoint_tensors(model)
    if tensors is not None:
        return sum(tensor.size_bytes for tensor in tensors.values())
    config = read_json(model / CONFIG)
    width = _WIDTHS.get(str(config.get("dtype") or config.get("torch_dtype")), 2)
    return width * sum(math.prod(shape) for shape in base.linear_shapes.values())


def why_too_large(weights: int, memory: int) -> str | None:
    """Why weights of so many bytes cannot be served in so much memory; None where they can, or that is not known.

    Args:
        weights: their bytes.
        memory: of the device that vLLM runs on; 0 where it is not known.
    """
    if memory == 0 or weights < memory:
        return None
    return f"its weights take {size_text(weights)} and this device has {size_text(memory)}. Take a larger device"


def size_text(size: int) -> str:
    """Bytes in MiB below a GiB, in GiB from there on."""
    return f"{size / _MIB:.1f} MiB" if size < _GIB else f"{size / _GIB:.1f} GiB"
