"""LoRA of diffusion models: one safetensors file, as sd-scripts (kohya) or diffusers writes it.

A module has a factor down [rank, in] and a factor up [out, rank], or [rank, in, kh, kw] and [out, rank, 1, 1] of a
convolution, which are the matrices [rank, in·kh·kw] and [out, rank]; its scale is ``alpha`` / rank, or 1 without alpha.
Both spellings are read under kohya's names, ``lora_unet_<module with underscores>``, and written so.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from amalgam.domain.name_patterns import NamePatterns
from amalgam.errors.formats import UnsupportedTarget
from amalgam.errors.internal import PatternRefused
from amalgam.errors.merging import NonFinite, UnsupportedFormat
from amalgam.store.loaded_tensors import DTYPE_NAMES, LoadedTensors, Readable, header_of, matched
from amalgam.store.safetensors_header import read_header
from amalgam.store.tensor_files import file_digest, load_checked

SUFFIX: Final = ".safetensors"
_KIND: Final = "a diffusion model's LoRA"
_DOWN: Final = ("lora_down.weight", "lora_A.weight", "lora.down.weight", "lora_linear_layer.down.weight")
_UP: Final = ("lora_up.weight", "lora_B.weight", "lora.up.weight", "lora_linear_layer.up.weight")
_FACTORS: Final = dict.fromkeys(_DOWN, "down") | dict.fromkeys(_UP, "up") | {"alpha": "alpha"}
_KOHYA: Final = re.compile(r"lora_[a-z0-9]+_[A-Za-z0-9_]+")
_PROCESSOR: Final = re.compile(r"\.processor\.(to_[qkv]|to_out)_lora\.")
_TOWERS: Final = {"unet": "lora_unet", "transformer": "lora_transformer", "text_encoder": "lora_te"}
"""It maps parts of a pipeline by diffusers' names to kohya's prefixes; further encoders of text are numbered."""
_SECOND: Final = "text_encoder_2"
_RULES: Final = "lora_adapter_metadata"

Kernel = tuple[int, int, int]
"""It is channels in, height and width."""


class KohyaTensors(LoadedTensors):
    """One file as a source of factors, and the shapes of the convolutions among its modules."""

    kernels: Mapping[str, Kernel]


def is_kohya(path: Path) -> bool:
    """Whether the file's tensors are named as LoRA of diffusion models is.

    Raises:
        InvalidSafetensors: it is no safetensors file.
        OSError: it cannot be read.
    """
    names = read_header(path)
    found = [split[0] for name in names if (split := _split(name)) is not None]
    return any(_named(module, names) is not None for module in found)


def open_kohya(adapter: str, path: Path) -> KohyaTensors:
    """Read a file of sd-scripts or diffusers.

    Args:
        adapter: Its name, for errors.
        path: Of the file.

    Raises:
        UnsupportedFormat: no LoRA of two factors a module, or names that are not known here.
        NonFinite: a tensor holds NaN or infinity.
        InvalidSafetensors: the file is none.
        OSError: it cannot be read.
    """
    names = read_header(path)
    found: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    kernels: dict[str, Kernel] = {}
    origins: dict[str, str] = {}
    for name, tensor in load_checked(path).items():
        split = _split(name)
        module = None if split is None else _named(split[0], names)
        if split is None or module is None or tensor.dtype not in DTYPE_NAMES or tensor.dim() not in (0, 1, 2, 4):
            raise UnsupportedFormat(adapter, _KIND, f"the tensor {name[:128]!r} has no place in it")
        if not bool(torch.isfinite(tensor).all()):
            raise NonFinite(adapter, module)
        factor = split[1]
        if origins.setdefault(module, split[0]) != split[0] or factor in found.get(module, ()):
            raise UnsupportedFormat(adapter, _KIND, f"{module[:128]} occurs twice, in two spellings")
        if factor == "alpha":
            if tensor.numel() != 1:
                raise UnsupportedFormat(adapter, _KIND, f"the alpha of {module[:128]} is no number")
            alphas[module] = float(tensor)
            continue
        if factor == "down" and tensor.dim() == 4:
            kernels[module] = (tensor.shape[1], tensor.shape[2], tensor.shape[3])
        found.setdefault(module, {})[factor] = _matrix(adapter, module, factor, tensor)
    pairs = matched(adapter, _KIND, found, ("down", "up"))
    scaling_of = _scales(adapter, path, alphas, origins, {name: A.shape[0] for name, (A, _) in pairs.items()})
    opened = KohyaTensors(header_of(pairs, scaling_of), file_digest(path), pairs)
    opened.kernels = kernels
    return opened


def _split(name: str) -> tuple[str, str] | None:
    """Module and factor of a tensor's name."""
    spelled = _PROCESSOR.sub(lambda found: f".{found[1]}{'.0' if found[1] == 'to_out' else ''}.lora.", name)
    for end, factor in _FACTORS.items():
        if spelled.endswith("." + end):
            return spelled.removesuffix("." + end), factor
    return None


def _named(module: str, names: Mapping[str, Any]) -> str | None:
    """A module's name as kohya writes it; None where it is of no diffusion model."""
    if "." not in module:
        return module if _KOHYA.fullmatch(module) else None
    tower, _, rest = module.partition(".")
    if tower.startswith("text_encoder_"):
        prefix: str | None = f"lora_te{tower.rpartition('_')[2]}"
    else:
        # Where there are two encoders of text, kohya numbers the first as well.
        several = tower == "text_encoder" and any(name.startswith(_SECOND + ".") for name in names)
        prefix = "lora_te1" if several else _TOWERS.get(tower)
    return None if prefix is None else f"{prefix}_{rest.replace('.', '_')}"


def _matrix(adapter: str, module: str, factor: str, tensor: Tensor) -> Tensor:
    if tensor.dim() == 4 and factor == "up" and tuple(tensor.shape[2:]) != (1, 1):
        raise UnsupportedFormat(adapter, _KIND, f"the factor up of {module[:128]} is wider than one point")
    return tensor.flatten(1).contiguous() if tensor.dim() == 4 else tensor


def _scales(
    adapter: str, path: Path, alphas: Mapping[str, float], origins: Mapping[str, str], ranks: Mapping[str, int]
) -> Callable[[str], float]:
    """Scale by module: from its own alpha, else from what diffusers wrote of the whole file, else 1."""
    try:
        with safe_open(path, "pt") as file:
            rules = json.loads((file.metadata() or {}).get(_RULES, "{}"))
        told = {name: _told(rules, origins[name], rank) for name, rank in ranks.items()}
    except (ValueError, TypeError, AttributeError, RecursionError, PatternRefused):
        raise UnsupportedFormat(adapter, _KIND, f"its metadata {_RULES!r} says no scales") from None
    own = {name: alpha / ranks[name] for name, alpha in alphas.items() if name in ranks}
    return lambda module: own.get(module, told[module])


def _told(rules: Mapping[str, Any], module: str, rank: int) -> float:
    tower, _, rest = module.partition(".")
    alpha = rules.get(f"{tower}.lora_alpha")
    if alpha is None:
        return 1.0
    table = NamePatterns[float](rules.get(f"{tower}.alpha_pattern") or {})
    scale = float(table.get(rest, alpha)) / (math.sqrt(rank) if rules.get(f"{tower}.use_rslora") else rank)
    if not math.isfinite(scale):
        raise ValueError
    return scale


def write_kohya(path: Path, source: Readable, kernels: Mapping[str, Kernel]) -> None:
    """Write an adapter as kohya's readers take it: factors in their own type, alpha in float32.

    Args:
        path: Replaced where it is there, once all is written.
        source: Its modules have kohya's names.
        kernels: Of those among them that are convolutions.

    Raises:
        UnsupportedTarget: a module is of no diffusion model.
        OSError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for name, module in sorted(source.header.modules.items()):
        if not _KOHYA.fullmatch(name):
            raise UnsupportedTarget("kohya's form", f"{name[:128]} is no module of a diffusion model")
        A, B = source.factors(name)
        if name in kernels:
            A, B = A.reshape(A.shape[0], *kernels[name]), B[:, :, None, None]
        tensors[f"{name}.lora_down.weight"] = A.contiguous()
        tensors[f"{name}.lora_up.weight"] = B.contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(module.scaling * module.rank)
    part = path.with_name(f".{path.name}.part")
    try:
        save_file(tensors, part, metadata={"format": "pt"})
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
