"""Errors of expressions, recipes and plans.

- expressions: InvalidExpression, which points at the column
- inputs: NoInputs, DuplicateInput, TooManyInputs, InputCountRefused, MissingInput
- method: UnknownMethod, SpaceRefused, ParameterRefused, WeightRefused, ZeroWeightSum
- fit: ShapeMismatch, BaseMismatch, NoCommonModule, UnequalRanks, NothingToMerge, AmbiguousChoice
- output: RankTooLarge, OutputTooLarge, EnergyTooLow
- formats: UnsupportedFormat
- values: NonFinite, MergeUndefined
- rebuilding: NotRebuildable
"""

from collections.abc import Sequence

from amalgam.errors import Conflict, InvalidRequest


class InvalidExpression(InvalidRequest):
    """A merge expression that cannot be read; ``column`` counts from 1.

    Next step: the message points at the column.
    """

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
    """A recipe without a single adapter.

    Next step: name at least one.
    """

    code = "no_inputs"
    param = "inputs"

    def __init__(self) -> None:
        super().__init__("The recipe names no adapter. Name at least one in 'inputs'.")


class DuplicateInput(InvalidRequest):
    """One adapter version named twice in a recipe.

    Next step: name it once, add up its weights.
    """

    code = "duplicate_input"
    param = "inputs"

    def __init__(self, adapter: str) -> None:
        super().__init__(f"{adapter!r} is named twice. Name it once and add up its weights.")


class TooManyInputs(InvalidRequest):
    """More than 64 inputs; in a ``model`` field more than ``AMALGAM_BLEND_MAX_INPUTS``.

    Next step: merge in two steps.
    """

    code = "too_many_inputs"
    param = "inputs"

    def __init__(self, count: int, limit: int, setting: str = "") -> None:
        by = f" ({setting})" if setting else ""
        super().__init__(f"The recipe names {count} adapters; {limit} is the limit{by}. Merge in two steps.")


class InputCountRefused(InvalidRequest):
    """A method that is defined for another number of inputs.

    Next step: change ``inputs`` or the method.
    """

    code = "input_count"
    param = "inputs"

    def __init__(self, method: str, count: int, wanted: str) -> None:
        super().__init__(f"Method {method!r} takes {wanted}, not {count}. Change 'inputs' or use another method.")


class UnknownMethod(InvalidRequest):
    """A method that is not in the table.

    Next step: the message lists them.
    """

    code = "unknown_method"
    param = "method"

    def __init__(self, method: str, known: Sequence[str]) -> None:
        super().__init__(f"There is no merge method {method[:64]!r}. Known methods: {', '.join(known)}.")


class SpaceRefused(InvalidRequest):
    """A space in which the method is not defined.

    Next step: the message lists its spaces.
    """

    code = "space_refused"
    param = "space"

    def __init__(self, method: str, space: str, known: Sequence[str]) -> None:
        super().__init__(f"Method {method!r} is not defined in space {space[:32]!r}; use one of: {', '.join(known)}.")


class ParameterRefused(InvalidRequest):
    """A parameter that the method does not have, or a value out of its range.

    Next step: mend ``param``.
    """

    code = "parameter_refused"

    def __init__(self, method: str, name: str, reason: str) -> None:
        super().__init__(
            f"Parameter {name[:64]!r} of method {method!r}: {reason}. `amalgam merge methods` lists names and ranges.",
            param=f"parameters.{name[:64]}",
        )


class WeightRefused(InvalidRequest):
    """A weight outside what the method means.

    Next step: the message says what fits.
    """

    code = "weight_refused"
    param = "inputs"

    def __init__(self, method: str, reason: str) -> None:
        super().__init__(f"The weights do not fit method {method!r}: {reason}.")


class ZeroWeightSum(InvalidRequest):
    """Weights whose sum is zero, in a method that divides by it.

    Next step: use ``task_arithmetic``, or other weights.
    """

    code = "zero_weight_sum"
    param = "inputs"

    def __init__(self, method: str, module: str) -> None:
        super().__init__(
            f"The weights of {module} add up to zero, and {method!r} divides by their sum. "
            "Use task_arithmetic, or change the weights."
        )


class MissingInput(InvalidRequest):
    """An input whose files were not given to the plan."""

    status = 404
    code = "adapter_not_found"
    param = "inputs"

    def __init__(self, adapter: str) -> None:
        super().__init__(f"No adapter was found for {adapter!r}. Check the name.")


class ShapeMismatch(InvalidRequest):
    """Factors that do not multiply, or do not fit the base model or each other.

    Next step: use adapters of one base model.
    """

    code = "shape_mismatch"
    param = "inputs"

    def __init__(self, module: str, shapes: Sequence[tuple[str, int, int]]) -> None:
        found = ", ".join(f"{name}: {out} x {inp}" for name, out, inp in shapes)
        super().__init__(f"Module {module} differs in shape ({found}). Merge only adapters of one base model.")


class BaseMismatch(InvalidRequest):
    """Inputs that were trained on different base models.

    Next step: merge adapters of one; or ``allow_base_mismatch``.
    """

    code = "base_mismatch"
    param = "inputs"

    def __init__(self, bases: Sequence[tuple[str, str]]) -> None:
        found = ", ".join(f"{name}: {base}" for name, base in bases)
        super().__init__(
            f"The inputs belong to different base models ({found}). "
            "If the shapes agree and this is meant, set allow_base_mismatch to true."
        )


class NoCommonModule(InvalidRequest):
    """An input that adapts no module of any other input: nearly always the same modules under another prefix.

    Next step: save it for the same model class; or ``passthrough``.
    """

    code = "no_common_module"
    param = "inputs"

    def __init__(self, adapter: str, module: str, other: str) -> None:
        super().__init__(
            f"{adapter!r} adapts no module that any other input adapts: it has {module[:128]!r}, they have "
            f"{other[:128]!r}. Save it for the same model class as the others, or pick modules with passthrough."
        )


class UnequalRanks(InvalidRequest):
    """Factor space adds A to A and B to B, so it needs equal ranks.

    Next step: use ``concat``, ``knots`` or ``core``.
    """

    code = "unequal_ranks"
    param = "space"

    def __init__(self, module: str, ranks: Sequence[int]) -> None:
        shown = ", ".join(str(rank) for rank in ranks)
        super().__init__(
            f"Space 'factor' needs equal ranks in {module}; found {shown}. "
            "Use space 'concat', 'knots' or 'core', which take any ranks."
        )


class NothingToMerge(InvalidRequest):
    """A recipe whose weights leave no module at all.

    Next step: give some module a weight.
    """

    code = "nothing_to_merge"
    param = "inputs"

    def __init__(self) -> None:
        super().__init__("The weights and filters leave no module to merge. Give some module a weight that is not 0.")


class AmbiguousChoice(InvalidRequest):
    """A passthrough where two inputs claim one module.

    Next step: filter one away.
    """

    code = "ambiguous_choice"
    param = "inputs"

    def __init__(self, module: str, adapters: Sequence[str]) -> None:
        super().__init__(
            f"passthrough takes one adapter per module, and {module} is claimed by {', '.join(adapters)}. "
            "Give all but one the weight 0 there, by a filter."
        )


class RankTooLarge(InvalidRequest):
    """A rank above ``AMALGAM_MAX_LORA_RANK``, of an adapter or asked for a merge.

    Next step: lower the rank, or raise the limit.
    """

    code = "rank_too_large"
    param = "output.rank"

    def __init__(self, rank: int, limit: int) -> None:
        super().__init__(
            f"The output would have rank {rank}; {limit} is the limit (AMALGAM_MAX_LORA_RANK). "
            "Ask for a smaller rank, or for rank 'auto'."
        )


class OutputTooLarge(InvalidRequest):
    """A result of more bytes than its place holds: of a blend, ``AMALGAM_BLEND_BYTES``.

    Next step: ask for a smaller rank or for fewer adapters.
    """

    code = "output_too_large"
    param = "output.rank"

    def __init__(self, needed_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"The result would take {needed_bytes} bytes; {limit_bytes} is the limit (for blends AMALGAM_BLEND_BYTES). "
            "Ask for a smaller rank, or merge fewer adapters."
        )


class EnergyTooLow(InvalidRequest):
    """A truncation that loses more than ``min_energy`` permits.

    Next step: raise the rank, or lower ``min_energy``.
    """

    status = 422
    code = "energy_too_low"
    param = "output.min_energy"

    def __init__(self, kept: float, wanted: float, rank: int) -> None:
        super().__init__(
            f"Rank {rank} keeps {kept:.4f} of the energy; min_energy asks for {wanted:.4f}. "
            "Raise the rank or lower min_energy."
        )


class UnsupportedFormat(InvalidRequest):
    """An adapter kind that no pair of factors can express.

    Next step: merge plain LoRA.
    """

    status = 422
    code = "unsupported_format"
    param = "inputs"

    def __init__(self, adapter: str, kind: str, reason: str) -> None:
        super().__init__(f"{adapter} is of kind {kind}: {reason}. Merge plain LoRA adapters.")


class NonFinite(InvalidRequest):
    """NaN or infinities, in an adapter or in a merge's result.

    Next step: train or export again.
    """

    status = 422
    code = "non_finite"
    param = "inputs"

    def __init__(self, where: str, module: str) -> None:
        super().__init__(
            f"{where} holds NaN or infinity in {module}. Train or export it again; nothing was written. "
            "Where the result overflows float16, choose bfloat16."
        )


class DeltaTooLarge(InvalidRequest):
    """A change of a weight beyond `AMALGAM_MAX_DELTA_RATIO` times its size, or a factor that overflows in float16.

    Of an adapter, or of what a merge or a blend would give.

    Next step: check `lora_alpha` and the factors, lower the weights.
    """

    status = 422
    code = "delta_too_large"

    def __init__(self, module: str, ratio: float, limit: float) -> None:
        super().__init__(
            f"The result would change {module} by {ratio:.3g} times its own size; the limit is {limit:g} times "
            "(AMALGAM_MAX_DELTA_RATIO). Lower the weights."
        )


class FactorTooLarge(DeltaTooLarge):
    """A result with a factor that an engine in half precision reads as an infinity."""

    def __init__(self, module: str, entry: float, limit: float) -> None:
        InvalidRequest.__init__(
            self,
            f"The result has a factor of {module} with an entry of {entry:.3g}; {limit:g} is the largest. "
            "Lower the weights.",
        )


class MergeUndefined(InvalidRequest):
    """Inputs for which the method has no answer, such as opposite directions on a sphere.

    Next step: use ``task_arithmetic`` there.
    """

    status = 422
    code = "merge_undefined"
    param = "inputs"

    def __init__(self, method: str, module: str, reason: str) -> None:
        super().__init__(f"{method!r} is undefined at {module}: {reason}. Use task_arithmetic there.")


class NotRebuildable(Conflict):
    """A version that was not merged here, or the files of one of its inputs are gone.

    Next step: its lineage says what it was made from.
    """

    code = "not_rebuildable"
    param = "version"

    def __init__(self, ref: str, reason: str) -> None:
        super().__init__(f"{ref} cannot be built again: {reason}. GET its lineage to see what it was made from.")
