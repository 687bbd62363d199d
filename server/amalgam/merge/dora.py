"""DoRA (arXiv:2402.09353) as factors: where the base weights are given its delta is known, and cut to the best rank.

Its weights are m/‖W + s·B·A‖ · (W + s·B·A), the norm that of each output row, so the delta has full rank: what a rank
keeps of it is computed and has to be said.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from amalgam.domain.adapter import ModuleHeader
from amalgam.errors.merging import NonFinite, UnsupportedFormat
from amalgam.merge.delta import truncate
from amalgam.merge.formats import ConvertedAdapter, header_of
from amalgam.merge.lowrank import Factors

_PREFIX: Final = "base_model.model."
_MAGNITUDE: Final = "lora_magnitude_vector"


def convert_dora(
    adapter: str,
    stored: tuple[Mapping[str, Any], Mapping[str, Tensor], str],
    scaling_of: Callable[[str], float],
    weight_of: Callable[[str], Tensor],
    rank: int | None,
) -> tuple[ConvertedAdapter, float]:
    """An adapter trained with DoRA as plain factors, and the share of its delta's energy that they hold.

    Args:
        adapter: Its name, for errors.
        stored: Config, tensors and digest.
        scaling_of: Module name -> s.
        weight_of: Module name -> W [out, in] of the base model.
        rank: Of the factors, at most; cut by the range finder of ``delta.truncate``. None: the delta as it is, beside
            an identity.

    Raises:
        UnsupportedFormat: a module without one of its tensors, or of another shape than the base model's.
        NonFinite: NaN or infinity in a tensor, or a row of W + s·B·A that is zero.
    """
    config, tensors, digest = stored
    pairs, modules, kept, total = {}, {}, 0.0, 0.0
    for name, parts in _by_module(tensors).items():
        try:
            A, B, magnitude = (parts[part].float() for part in ("lora_A", "lora_B", _MAGNITUDE))
        except KeyError as error:
            raise UnsupportedFormat(adapter, "DoRA", f"{name} lacks the tensor {error}") from error
        weight = weight_of(name).float()
        if weight.shape != (B.shape[0], A.shape[1]) or magnitude.numel() != weight.shape[0]:
            raise UnsupportedFormat(adapter, "DoRA", f"the base model's {name} has another shape")
        delta = _delta(weight, A, B, magnitude.view(-1, 1), scaling_of(name))
        if not bool(torch.isfinite(delta).all()):
            raise NonFinite(adapter, name)
        if rank is None:
            pairs[name] = _whole(delta)
            energies = float(delta.double().square().sum())
            kept, total = kept + energies, total + energies
        else:
            factors = _cut(delta, rank)
            pairs[name] = factors.A[0].contiguous(), factors.B[0].contiguous()
            kept, total = kept + float(factors.kept), total + float(factors.total)
        modules[name] = ModuleHeader(name, pairs[name][0].shape[0], *weight.shape[::-1], 1.0, "F32")
    return ConvertedAdapter(header_of(modules, config, tensors), digest, pairs), kept / total if total else 1.0


def _by_module(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, _, part = name.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
        found.setdefault(module, {})[part] = tensor
    return found


def _delta(weight: Tensor, A: Tensor, B: Tensor, magnitude: Tensor, scaling: float) -> Tensor:
    """What DoRA adds to a weight, [out, in]."""
    moved = weight + scaling * (B @ A)
    norms: Tensor = torch.linalg.vector_norm(moved, dim=1, keepdim=True)
    return magnitude / norms * moved - weight


def _whole(delta: Tensor) -> tuple[Tensor, Tensor]:
    """A and B with B·A = delta, the identity on the shorter side."""
    rows, columns = delta.shape
    return (delta, torch.eye(rows)) if rows <= columns else (torch.eye(columns), delta)


def _cut(delta: Tensor, rank: int) -> Factors:
    shape = (delta.shape[0], delta.shape[1])
    limit = min(rank, *shape)
    return truncate(lambda: iter([(slice(0, shape[0]), delta)]), shape, limit, None, delta.device)
