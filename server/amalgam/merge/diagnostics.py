"""What a merge does to each input, from factors alone: the Gram blocks of a stack are there already."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from amalgam.domain.diagnostics import InputDiagnostics, ModuleDiagnostics, OutputDiagnostics
from amalgam.kernels.eigen import semidefinite_eigh
from amalgam.kernels.selection import blocks
from amalgam.merge.coefficients import cosines
from amalgam.merge.lowrank import Factors, inverse_where_safe
from amalgam.merge.stack import Stack

SAMPLED_SIDE: Final = 96
"""Signs are compared on a random sub-matrix of this many rows and columns of each module."""

PAIRED_INPUTS: Final = 8
"""Up to this many inputs, what is known of every pair is written module by module."""

WRITTEN_VALUES: Final = 64
"""So many singular values of a module are written, beside those that the result keeps."""

_MATRICES: Final = ("cosine", "column_overlap", "row_overlap", "sign_conflict", "sign_baseline")
_SAMPLE_SEED: Final = 0x51611
_DIGITS: Final = 5


class DiagnosticsCollector:
    """Looks at batches as they are merged."""

    def __init__(self, names: Sequence[str], *, every_sign: bool = False) -> None:
        """Names of the recipe's inputs; ``every_sign`` counts sign conflicts over all entries of what is merged."""
        self._names = tuple(names)
        self._every_sign = every_sign
        self.modules: list[ModuleDiagnostics] = []

    def observe(self, stack: Stack, factors: Factors | None) -> None:
        """Take one batch; without factors only its inputs are described."""
        given = describe_inputs(stack, self._names, every_sign=self._every_sign and factors is not None)
        results: Sequence[OutputDiagnostics | None] = [None] * len(given)
        if factors is not None:
            results = describe_results(stack, factors)
        for module, before, after in zip(stack.modules, given, results, strict=True):
            self.modules.append(ModuleDiagnostics(name=module.name, given=before, result=after))

    def overall(self) -> Mapping[str, object]:
        """The whole adapter: norms and cosines over all modules together, and the extremes of retention."""
        return summarize(self.modules, self._names)


def brief(module: ModuleDiagnostics) -> dict[str, Any]:
    """A module as it is written beside the adapter, of a size that does not grow with the square of the inputs.

    The matrices of all pairs stay away beyond `PAIRED_INPUTS` inputs, where the whole adapter's say the same, and of
    long spectra the beginning is written.
    """
    told = module.model_dump(mode="json")
    if len(module.given.inputs) > PAIRED_INPUTS:
        told["given"] |= {name: [] for name in _MATRICES}
    if told["result"] is not None:
        told["result"]["spectrum"] = told["result"]["spectrum"][: max(WRITTEN_VALUES, told["result"]["rank"])]
    return told


def describe_inputs(stack: Stack, names: Sequence[str], *, every_sign: bool = False) -> list[InputDiagnostics]:
    """The inputs of every module of a stack; signs are compared on a sample, or by ``every_sign`` on all entries."""
    gram = stack.gram_delta
    cosine, norms = cosines(gram)
    columns, rows = _overlaps(stack.gram_b, stack.ranks), _overlaps(stack.gram_a, stack.ranks)
    conflict = _every_sign_conflict(stack) if every_sign else _sign_conflict(stack)
    weights = stack.weights
    sums = torch.einsum("ni,nij,nj->n", weights, gram, weights).clamp_min(0).sqrt()
    mass = (weights.abs() * norms).sum(dim=1)
    largest, module = max(stack.ranks), stack.modules[0]
    return [
        InputDiagnostics(
            inputs=tuple(names[index] for index in stack.inputs),
            weights=_row(weights[n]),
            ranks=stack.ranks,
            norms=_row(norms[n]),
            cosine=_matrix(cosine[n]),
            column_overlap=_matrix(columns[n]),
            column_chance=_short(min(1.0, largest / module.out_features)),
            row_overlap=_matrix(rows[n]),
            row_chance=_short(min(1.0, largest / module.in_features)),
            sign_conflict=_matrix(conflict[n]),
            sign_baseline=_matrix(torch.acos(cosine[n].clamp(-1, 1)) / math.pi),
            sum_norm=_short(float(sums[n])),
            shrinkage=_short(float(sums[n] / mass[n])) if mass[n] > 0 else 0.0,
            restoring_lambda=_short(float(norms[n].mean() / sums[n])) if sums[n] > 0 else 0.0,
        )
        for n in range(len(stack.modules))
    ]


def describe_results(stack: Stack, factors: Factors) -> list[OutputDiagnostics]:
    """The result of every module of a stack, beside its inputs."""
    keep = torch.arange(factors.B.shape[2], device=factors.B.device)
    mask = (keep < torch.tensor(factors.ranks, device=factors.B.device).unsqueeze(1)).to(factors.B.dtype)
    B, A = factors.B * mask.unsqueeze(1), factors.A * mask.unsqueeze(2)
    own_b, own_a = (B.mT @ B).double(), (A @ A.mT).double()
    cross_b, cross_a = (B.mT @ stack.B).double(), (A @ stack.A.mT).double()
    scaling = stack.columns(stack.scaling)
    membership = stack.columns(torch.eye(len(stack.ranks), dtype=torch.float64, device=B.device))
    dots = ((cross_b * cross_a).sum(dim=1) * scaling).unsqueeze(1) @ membership.mT
    norms = torch.diagonal(stack.gram_delta, dim1=1, dim2=2).clamp_min(0)
    safe = norms.clamp_min(torch.finfo(norms.dtype).tiny)
    retention = torch.where(norms > 0, dots.squeeze(1) / safe, 0.0)
    inside = _inside(own_b, own_a, cross_b, cross_a * scaling.unsqueeze(1), stack.ranks) / safe
    norm = (own_b * own_a).sum(dim=(1, 2)).clamp_min(0).sqrt()
    kept = factors.kept
    return [
        OutputDiagnostics(
            rank=factors.ranks[n],
            norm=_short(float(norm[n])),
            energy_kept=_short(float(kept[n] / factors.total[n])) if factors.total[n] > 0 else 1.0,
            spectrum=_row(factors.spectrum[n]),
            rank_95=_needed_rank(factors.spectrum[n], float(factors.total[n]), 0.95),
            rank_99=_needed_rank(factors.spectrum[n], float(factors.total[n]), 0.99),
            stable_rank=_stable_rank(factors.spectrum[n], float(factors.total[n])),
            retention=_row(retention[n]),
            inside=_row(inside[n].clamp(0, 1)),
        )
        for n in range(len(stack.modules))
    ]


def summarize(modules: Sequence[ModuleDiagnostics], names: Sequence[str]) -> Mapping[str, object]:
    """Norms, cosines and retention over all modules together, by input in the order of ``names``."""
    count = len(names)
    gram = [[0.0] * count for _ in range(count)]
    retained = [0.0] * count
    for module in modules:
        given = module.given
        places = [names.index(name) for name in given.inputs]
        for i, at in enumerate(places):
            for j, other in enumerate(places):
                gram[at][other] += given.cosine[i][j] * given.norms[i] * given.norms[j]
            if module.result is not None:
                retained[at] += module.result.retention[i] * given.norms[i] ** 2
    norms = [math.sqrt(gram[i][i]) for i in range(count)]
    pairs = [[gram[i][j] / (norms[i] * norms[j]) if norms[i] * norms[j] > 0 else 0.0 for j in range(count)]
             for i in range(count)]  # fmt: skip
    return {
        "inputs": list(names),
        "norms": [_short(norm) for norm in norms],
        "cosine": [[_short(value) for value in row] for row in pairs],
        "retention": [_short(r / n**2) if n > 0 else 0.0 for r, n in zip(retained, norms, strict=True)],
    }


def _overlaps(gram: Tensor, ranks: tuple[int, ...]) -> Tensor:
    """‖Q_iᵀQ_j‖² / min(r_i, r_j) for orthonormal bases Q of each input's columns, [n, T, T], float64."""
    n, count, sizes = gram.shape[0], len(ranks), list(ranks)
    whitening = torch.zeros_like(gram)
    at = 0
    for rank in ranks:
        block = slice(at, at + rank)
        eigenvalues, V = semidefinite_eigh(gram[:, block, block])
        whitening[:, block, block] = V * inverse_where_safe(eigenvalues).unsqueeze(-2)
        at += rank
    squares = (whitening.mT @ gram @ whitening).square()
    out = torch.zeros((n, count, count), dtype=torch.float64, device=gram.device)
    for i, row in enumerate(torch.split(squares, sizes, dim=1)):
        for j, block_ij in enumerate(torch.split(row, sizes, dim=2)):
            out[:, i, j] = block_ij.sum(dim=(1, 2)) / min(ranks[i], ranks[j])
    return out


def _sign_conflict(stack: Stack) -> Tensor:
    """Share of sampled entries where two inputs have different signs, [n, T, T]."""
    generator = torch.Generator().manual_seed(_SAMPLE_SEED)
    rows = torch.randperm(stack.B.shape[1], generator=generator)[:SAMPLED_SIDE].to(stack.B.device)
    columns = torch.randperm(stack.A.shape[2], generator=generator)[:SAMPLED_SIDE].to(stack.B.device)
    signs = [
        (b[:, rows] @ a[:, :, columns]).sign().flatten(1) * stack.scaling[:, t, None].sign().float()
        for t, (b, a) in enumerate(stack.parts())
    ]
    votes = torch.stack(signs, dim=1)
    return _conflicting(votes.abs() @ votes.abs().mT, votes @ votes.mT)


def _every_sign_conflict(stack: Stack) -> Tensor:
    """The same over all entries, tile by tile."""
    n, count = len(stack.modules), len(stack.ranks)
    both = torch.zeros((n, count, count), dtype=torch.float64, device=stack.B.device)
    agreement = torch.zeros_like(both)
    for row, module in enumerate(stack.modules):
        signs = stack.scaling[row].sign().tolist()
        for block in blocks((module.out_features, module.in_features), stack.B.device):
            tiles = [
                (b[row, block] @ a[row]).sign_().mul_(sign) for (b, a), sign in zip(stack.parts(), signs, strict=True)
            ]
            votes = torch.stack(tiles).flatten(1)
            agreement[row] += votes @ votes.mT
            present = votes.abs_()
            both[row] += present @ present.mT
    return _conflicting(both, agreement)


def _conflicting(both: Tensor, agreement: Tensor) -> Tensor:
    """Share of conflicts among entries that two inputs both have, from counts and sums of products of signs."""
    return torch.where(both > 0, (both - agreement) / 2 / both.clamp_min(1), 0.0)


def _inside(own_b: Tensor, own_a: Tensor, cross_b: Tensor, cross_a: Tensor, ranks: tuple[int, ...]) -> Tensor:
    """‖P·Δ_t·Q‖² with P, Q the projections on the result's column and row spaces, [n, T]."""
    values_b, V_b = semidefinite_eigh(own_b)
    values_a, V_a = semidefinite_eigh(own_a)
    left = (V_b * inverse_where_safe(values_b).unsqueeze(-2)).mT @ cross_b
    right = (V_a * inverse_where_safe(values_a).unsqueeze(-2)).mT @ cross_a
    pairs = zip(torch.split(left, list(ranks), dim=2), torch.split(right, list(ranks), dim=2), strict=True)
    return torch.stack([(b @ a.mT).square().sum(dim=(1, 2)) for b, a in pairs], dim=1)


def _needed_rank(spectrum: Tensor, total: float, share: float) -> int:
    sums = spectrum.square().cumsum(dim=0)
    reached = int((sums < share * total).sum()) + 1
    return reached if reached <= spectrum.shape[0] else 0


def _stable_rank(spectrum: Tensor, total: float) -> float:
    largest = float(spectrum[0]) ** 2 if spectrum.shape[0] else 0.0
    return _short(total / largest) if largest > 0 else 0.0


def _short(value: float) -> float:
    """Rounded for print; a lineage is read by people."""
    return float(f"{value:.{_DIGITS}g}")


def _row(values: Tensor) -> tuple[float, ...]:
    return tuple(_short(value) for value in values.tolist())


def _matrix(values: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(_row(row) for row in values)
