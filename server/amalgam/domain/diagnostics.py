"""What a merge does to its inputs, as numbers: per module, over all, and what it will take."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class InputDiagnostics(_Frozen):
    """The inputs of one module; lists and square matrices are in the order of ``inputs``."""

    inputs: tuple[str, ...]
    weights: tuple[float, ...]
    ranks: tuple[int, ...]
    norms: tuple[float, ...] = Field(description="‖Δ_t‖")
    cosine: tuple[tuple[float, ...], ...]
    column_overlap: tuple[tuple[float, ...], ...] = Field(
        description="share of the smaller column space (of B) that lies in the other; column_chance is what "
        "random ones share"
    )
    column_chance: float
    row_overlap: tuple[tuple[float, ...], ...]
    row_chance: float
    sign_conflict: tuple[tuple[float, ...], ...] = Field(
        description="share of entries whose signs differ: of a sample, or of all where deltas were merged"
    )
    sign_baseline: tuple[tuple[float, ...], ...] = Field(
        description="expected share for Gaussian entries of that cosine: arccos(cos)/π"
    )
    sum_norm: float = Field(description="‖Σ wΔ‖")
    shrinkage: float = Field(description="‖Σ wΔ‖ / Σ |w|‖Δ_t‖: 1 where all point one way, 0 where they cancel")
    restoring_lambda: float = Field(
        description="the factor that brings Σ wΔ to the mean norm of the inputs; 0 where Σ wΔ is zero"
    )


class OutputDiagnostics(_Frozen):
    """One module of the result."""

    rank: int
    norm: float
    energy_kept: float
    spectrum: tuple[float, ...] = Field(description="singular values before the cut, as far as they were seen")
    rank_95: int = Field(description="rank that keeps 0.95 of the energy; 0 where the spectrum seen does not reach it")
    rank_99: int
    stable_rank: float = Field(description="σσ² / σ₁²")
    retention: tuple[float, ...] = Field(
        description="⟨Δ_out, Δ_t⟩ / ‖Δ_t‖² per input: how much of it is still applied; negative where it is subtracted"
    )
    inside: tuple[float, ...] = Field(description="share of ‖Δ_t‖² inside the row and column spaces of the result")


class ModuleDiagnostics(_Frozen):
    """One module, before and, where it was built, after the merge."""

    name: str
    given: InputDiagnostics
    result: OutputDiagnostics | None = None


class MergeForecast(_Frozen):
    """What a merge would give and take, from running it without writing anything."""

    is_complete: bool = Field(description="whether every module was looked at within the time allowed", examples=[True])
    modules_seen: int = Field(examples=[210])
    memory_bytes: int = Field(description="most memory that the merge takes beside its inputs", examples=[31000000])
    compute_s: float | None = Field(
        description="seconds of computing, extrapolated where not every module was seen; null where none was",
        examples=[0.7],
    )
    energy_kept: float | None = Field(
        description="share of Σσ² that the output's rank keeps in the modules seen; null where nothing is cut",
        examples=[1.0],
    )
    overall: dict[str, Any] = Field(
        description="norms, cosines and retention over the modules seen, by input",
        examples=[{"inputs": ["sql@1", "json@1"], "norms": [3.1, 2.8], "cosine": [[1.0, 0.02], [0.02, 1.0]]}],
    )
    modules: tuple[ModuleDiagnostics, ...] = Field(
        description="these numbers and more, module by module", examples=[[]]
    )
