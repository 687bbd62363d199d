"""Chooses the implementation that runs, once and by name; what cannot be honoured is refused, never replaced."""

import importlib.util
from typing import Final

import torch

from amalgam.errors.merge_run import BackendUnavailable
from amalgam.kernels.cpu_tiles import CpuTiles
from amalgam.kernels.tiles import ReferenceTiles, TileBackend, TileRule

BACKENDS: Final = ("auto", "reference", "cpu", "triton")
"""``auto`` is cpu on a processor, and on a CUDA device triton for what it implements and reference for the rest; what
was chosen is recorded in the lineage."""


def select_backend(requested: str, device: torch.device, rule: TileRule) -> TileBackend:
    """The implementation named ``requested``.

    Raises:
        BackendUnavailable: unknown, not made for the device, or without the rule.
    """
    name = _automatic(device, rule) if requested == "auto" else requested
    if name == "reference":
        return ReferenceTiles()
    if name == "cpu":
        if device.type != "cpu":
            raise BackendUnavailable(name, str(device), "it is written for processors")
        return CpuTiles()
    if name != "triton":
        raise BackendUnavailable(name[:32], str(device), f"there is none of that name, only {', '.join(BACKENDS)}")
    if device.type != "cuda":
        raise BackendUnavailable(name, str(device), "it needs a CUDA device")
    if importlib.util.find_spec("triton") is None:
        raise BackendUnavailable(name, str(device), "the package triton is not installed")
    from amalgam.kernels.triton_backend import SUPPORTED, TritonTiles

    if rule.sparsify not in SUPPORTED:
        raise BackendUnavailable(name, str(device), f"it does not implement {rule.sparsify!r}; use reference")
    if rule.consensus == "elect_plain":
        raise BackendUnavailable(name, str(device), "it does not implement the election of 'sce'; use reference")
    return TritonTiles()


def usable_device(name: str) -> torch.device:
    """The device named ``name``.

    Raises:
        BackendUnavailable: torch does not know it or cannot reach it.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BackendUnavailable("torch", name[:32], "torch knows no such device") from error
    if device.type not in ("cpu", "cuda"):
        raise BackendUnavailable("torch", name[:32], "merges run on cpu and cuda devices")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise BackendUnavailable("torch", name[:32], "torch sees no such CUDA device")
    return device


def _automatic(device: torch.device, rule: TileRule) -> str:
    if device.type == "cpu":
        return "cpu"
    return "reference" if rule.sparsify == "della" or rule.consensus == "elect_plain" else "triton"
