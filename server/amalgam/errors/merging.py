"""Errors of expressions, recipes, plans and kernels.

- expressions: InvalidExpression, which points at the column
- inputs: NoInputs, DuplicateInput, TooManyInputs, InputCountRefused, MissingInput
- method: UnknownMethod, SpaceRefused, ParameterRefused, WeightRefused, ZeroWeightSum
- fit: ShapeMismatch, BaseMismatch, UnequalRanks, NothingToMerge, AmbiguousChoice
- output: RankTooLarge, OutputTooLarge, EnergyTooLow
- formats: UnsupportedFormat
- values: NonFinite, MergeUndefined
- rebuilding: NotRebuildable
- machine: BackendUnavailable, WorkspaceTooSmall, OutOfMemory, MergeCancelled
"""

from collections.abc import Sequence

from amalgam.errors import AmalgamError, Conflict, InvalidRequest


class InvalidExpression(InvalidRequest):
    """A merge expression that cannot be read; ``column`` counts from 1."""

    code = "invalid_expression"
    param = "model"

    def __init__(self, text: str, column: int, reason: str) -> None:
        self.column = column
        near = text[max(0, column - 1) : column + 23]
        place = f"column {column}, at {near!r}" if near else f"column {column}, the end"
        super().__init__(
            f"The expression cannot be read at {place}: {reason}. "
            "Write for example 'sql + 0.5*json - 0.2*toxic' or 'ties(sql, 0.8*json; density=0.3)'."
        )


class NoInputs(InvalidRequest):
    """A recipe without a single adapter."""

    code = "no_inputs"
    param = "inputs"

    def __init__(self) -> None:
        super().__init__("The recipe names no adapter. Name at least one in 'inputs'.")


class DuplicateInput(InvalidRequest):
    """One adapter version named twice in a recipe."""

    code = "duplicate_input"
    param = "inputs"

    def __init__(self, adapter: str) -> None:
        super().__init__(f"{adapter!r} is named twice. Name it once and add up its weights.")


class TooManyInputs(InvalidRequest):
    """More inputs than a recipe may have."""

    code = "too_many_inputs"
    param = "inputs"

    def __init__(self, count: int, limit: int, setting: str = "") -> None:
        by = f" ({setting})" if setting else ""
        super().__init__(f"The recipe names {count} adapters; {limit} is the limit{by}. Merge in two steps.")


class InputCountRefused(InvalidRequest):
    """A method that is defined for another number of inputs."""

    code = "input_count"
    param = "inputs"

    def __init__(self, method: str, count: int, wanted: str) -> None:
        super().__init__(f"Method {method!r} takes {wanted}, not {count}. Change 'inputs' or use another method.")


class UnknownMethod(InvalidRequest):
    """A method that is not in the table."""

    code = "unknown_method"
    param = "method"

    def __init__(self, method: str, known: Sequence[str]) -> None:
        super().__init__(f"There is no merge method {method[:64]!r}. Known methods: {', '.join(known)}.")


class SpaceRefused(InvalidRequest):
    """A space in which the method is not defined."""

    code = "space_refused"
    param = "space"

    def __init__(self, method: str, space: str, known: Sequence[str]) -> None:
        super().__init__(f"Method {method!r} is not defined in space {space[:32]!r}; use one of: {', '.join(known)}.")


class ParameterRefused(InvalidRequest):
    """A parameter that the method does not have, or a value out of its range."""

    code = "parameter_refused"

    def __init__(self, method: str, name: str, reason: str) -> None:
        super().__init__(
            f"Parameter {name[:64]!r} of method {method!r}: {reason}. `amalgam merge methods` lists names and ranges.",
            param=f"parameters.{name[:64]}",
        )


class WeightRefused(InvalidRequest):
    """A weight outside what the method means."""

    code = "weight_refused"
    param = "inputs"

    def __init__(self, method: str, reason: str) -> None:
        super().__init__(f"The weights do not fit method {method!r}: {reason}.")


class ZeroWeightSum(InvalidRequest):
    """Weights that a normalising method cannot divide by their sum."""

    code = "zero_weight_sum"
    param = "inputs"

    def __init__(self, method: str, module: str) -> None:
        super().__init__(
            f"The weights of {module} add up to zero, and {method!r} divides by their sum. "
            "Use task_arithmetic, or change the weights."
        )


class MissingInput(InvalidRequest):
    """An input whose files were not handed to the plan."""

    status = 404
    code = "adapter_not_found"
    param = "inputs"

    def __init__(self, adapter: str) -> None:
        super().__init__(f"No adapter was found for {adapter!r}. Check the name.")


class ShapeMismatch(InvalidRequest):
    """Inputs that adapt one module with different outer sizes: they belong to different base models."""

    code = "shape_mismatch"
    param = "inputs"

    def __init__(self, module: str, shapes: Sequence[tuple[str, int, int]]) -> None:
        found = ", ".join(f"{name}: {out} x {inp}" for name, out, inp in shapes)
        super().__init__(f"Module {module} differs in shape ({found}). Merge only adapters of one base model.")


class BaseMismatch(InvalidRequest):
    """Inputs that were trained on different base models."""

    code = "base_mismatch"
    param = "inputs"

    def __init__(self, bases: Sequence[tuple[str, str]]) -> None:
        found = ", ".join(f"{name}: {base}" for name, base in bases)
        super().__init__(
            f"The inputs belong to different base models ({found}). "
            "If the shapes agree and this is meant, set allow_base_mismatch to true."
        )


class UnequalRanks(InvalidRequest):
    """Factor space adds A to A and B to B, so it needs equal ranks."""

    code = "unequal_ranks"
    param = "space"

    def __init__(self, module: str, ranks: Sequence[int]) -> None:
        shown = ", ".join(str(rank) for rank in ranks)
        super().__init__(
            f"Space 'factor' needs equal ranks in {module}; found {shown}. "
            "Use space 'concat', 'knots' or 'core', which take any ranks."
        )


class NothingToMerge(InvalidRequest):
    """A recipe whose weights leave no module at all."""

    code = "nothing_to_merge"
    param = "inputs"

    def __init__(self) -> None:
        super().__init__("The weights and filters leave no module to merge. Give some module a weight that is not 0.")


class AmbiguousChoice(InvalidRequest):
    """A passthrough where two inputs claim one module."""

    code = "ambiguous_choice"
    param = "inputs"

    def __init__(self, module: str, adapters: Sequence[str]) -> None:
        super().__init__(
            f"passthrough takes one adapter per module, and {module} is claimed by {', '.join(adapters)}. "
            "Give all but one the weight 0 there, by a filter."
        )


class RankTooLarge(InvalidRequest):
    """An output rank above what serving allows."""

    code = "rank_too_large"
    param = "output.rank"

    def __init__(self, rank: int, limit: int) -> None:
        super().__init__(
            f"The output would have rank {rank}; {limit} is the limit (AMALGAM_MAX_LORA_RANK). "
            "Ask for a smaller rank, or for rank 'auto'."
        )


class OutputTooLarge(InvalidRequest):
    """A result of more bytes than its place holds."""

    code = "output_too_large"
    param = "output.rank"

    def __init__(self, needed_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"The result would take {needed_bytes} bytes; {limit_bytes} is the limit (for blends AMALGAM_BLEND_BYTES). "
            "Ask for a smaller rank, or merge fewer adapters."
        )


class EnergyTooLow(InvalidRequest):
    """A truncation that loses more than the recipe permits."""

    status = 422
    code = "energy_too_low"
    param = "output.min_energy"

    def __init__(self, kept: float, wanted: float, rank: int) -> None:
        super().__init__(
            f"Rank {rank} keeps {kept:.4f} of the energy; min_energy asks for {wanted:.4f}. "
            "Raise the rank or lower min_energy."
        )


class UnsupportedFormat(InvalidRequest):
    """An adapter kind that no pair of factors can express."""

    status = 422
    code = "unsupported_format"
    param = "inputs"

    def __init__(self, adapter: str, kind: str, reason: str) -> None:
        super().__init__(f"{adapter} is of kind {kind}: {reason}. Merge plain LoRA adapters.")


class NonFinite(InvalidRequest):
    """NaN or infinity in an input or in the result."""

    status = 422
    code = "non_finite"
    param = "inputs"

    def __init__(self, where: str, module: str) -> None:
        super().__init__(
            f"{where} holds NaN or infinity in {module}. Train or export it again; nothing was written. "
            "Where the result overflows float16, choose bfloat16."
        )


class MergeUndefined(InvalidRequest):
    """Inputs for which the method has no answer, such as opposite directions on a sphere."""

    status = 422
    code = "merge_undefined"
    param = "inputs"

    def __init__(self, method: str, module: str, reason: str) -> None:
        super().__init__(f"{method!r} is undefined at {module}: {reason}. Use task_arithmetic there.")


class BackendUnavailable(InvalidRequest):
    """A kernel backend or a device that this machine does not have."""

    code = "backend_unavailable"
    param = "device"

    def __init__(self, backend: str, device: str, reason: str) -> None:
        super().__init__(f"Backend {backend!r} cannot run on {device!r}: {reason}. Use --device cpu.")


class WorkspaceTooSmall(InvalidRequest):
    """A workspace bound under which not even one module can be worked on."""

    code = "workspace_too_small"
    param = "max_workspace_bytes"

    def __init__(self, module: str, needed: int, limit: int) -> None:
        super().__init__(
            f"Module {module} needs {needed} bytes of workspace; {limit} are allowed. Raise --max-workspace "
            "(AMALGAM_MERGE_WORKSPACE_BYTES for the server)."
        )


class MergeCancelled(AmalgamError):
    """The caller asked the merge to stop; nothing was written."""

    status = 409
    code = "merge_cancelled"

    def __init__(self) -> None:
        super().__init__("The merge was cancelled before it was complete; nothing was written. Start it again.")


class OutOfMemory(AmalgamError):
    """The machine or the device had no memory left in the middle of a merge; nothing was written."""

    code = "out_of_memory"

    def __init__(self) -> None:
        super().__init__(
            "The merge ran out of memory; nothing was written. Lower AMALGAM_MERGE_WORKSPACE_BYTES or the output's "
            "rank, or merge in two steps."
        )


class NotRebuildable(Conflict):
    """A version that cannot be built again: it was not merged here, or what it was merged from is gone."""

    code = "not_rebuildable"
    param = "version"

    def __init__(self, ref: str, reason: str) -> None:
        super().__init__(f"{ref} cannot be built again: {reason}. GET its lineage to see what it was made from.")
