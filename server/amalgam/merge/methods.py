"""The table of merge methods. Adding one is adding a row here and, where its rule is new, a function to ``rules``.

A method is a point on two axes: how each input is thinned out (``sparsify``) and how the inputs agree (``consensus``).
Nothing here touches a tensor, so that the server can answer questions about methods without loading torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from amalgam.domain.recipe import Output, Recipe
from amalgam.errors.merging import InputCountRefused, ParameterRefused, SpaceRefused, UnknownMethod
from amalgam.errors.type_words import told

Density = Annotated[float, Field(gt=0, le=1, description="fraction of entries kept")]


class Space(StrEnum):
    """Where a rule is applied."""

    CONCAT = "concat"
    KNOTS = "knots"
    CORE = "core"
    DELTA = "delta"
    FACTOR = "factor"

    @property
    def blends(self) -> bool:
        """Whether the ``model`` field takes it by default; on deltas a merge takes a hundred times as long."""
        return self is not Space.DELTA


class Sparsify(StrEnum):
    """How each input is thinned out before the inputs are combined."""

    NONE = "none"
    TRIM = "trim"
    DROP = "drop"
    DELLA = "della"
    BREADCRUMBS = "breadcrumbs"


class Consensus(StrEnum):
    """How the inputs agree on one result."""

    SUM = "sum"
    NORMALIZED_SUM = "normalized_sum"
    PICK = "pick"
    SLERP = "slerp"
    MULTISLERP = "multislerp"
    KARCHER = "karcher"
    MODEL_STOCK = "model_stock"
    ELECT = "elect"
    SCE = "sce"
    TSV = "tsv"
    ISO_C = "iso_c"


class Weights(StrEnum):
    """What the weights of a method mean."""

    SIGNED = "signed"
    """The sum is Σ w·Δ as written."""
    RELATIVE = "relative"
    """Ratios alone are taken, signs included; ``lambda`` sets the scale."""
    SHARES = "shares"
    """They are non-negative, and divided by their sum."""
    NONE = "none"
    """The method has no weights; all must be 1."""


class Parameters(BaseModel):
    """Base of the typed parameters: frozen, no unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)


class NoParameters(Parameters):
    """A method without parameters."""


class LambdaParameters(Parameters):
    """Scale of the result."""

    lambda_: float = Field(default=1.0, alias="lambda", ge=-100, le=100, description="scale of the result")


class ElectParameters(LambdaParameters):
    """Sign election."""

    election: Literal["total", "frequency"] = Field(default="total", description="sign of the sum, or of the majority")


class TiesParameters(ElectParameters):
    """Trim, elect signs, average what agrees."""

    density: Density = 0.2
    scope: Literal["tensor", "global"] = Field(default="tensor", description="one threshold per module, or per adapter")


class TrimParameters(Parameters):
    """Trim by magnitude."""

    density: Density = 0.2
    scope: Literal["tensor", "global"] = Field(default="tensor", description="one threshold per module, or per adapter")


class DropParameters(Parameters):
    """Keep each entry by chance and rescale."""

    density: Density = 0.5


class DropElectParameters(ElectParameters):
    """Keep each entry by chance, then elect signs."""

    density: Density = 0.5
    trim_after: bool = Field(default=False, description="trim what was kept, as TIES does, before the election")
    trim_density: Density = Field(default=0.2, description="fraction kept by that trim, of all entries")


class DellaParameters(Parameters):
    """Keep each entry by a chance that grows with its magnitude."""

    density: Density = 0.5
    epsilon: float = Field(default=0.15, ge=0, lt=1, description="half width of the keep probabilities")

    @model_validator(mode="after")
    def _inside(self) -> Self:
        if self.density - self.epsilon <= 0 or self.density + self.epsilon > 1:
            raise ValueError("density - epsilon must be above 0 and density + epsilon at most 1")
        return self


class DellaElectParameters(DellaParameters, ElectParameters):
    """The same, with a sign election."""


class BreadcrumbsParameters(Parameters):
    """Drop the largest and the smallest entries."""

    density: Density = 0.9
    gamma: float = Field(default=0.01, ge=0, lt=1, description="fraction of largest entries dropped")

    @model_validator(mode="after")
    def _inside(self) -> Self:
        if self.density + self.gamma > 1:
            raise ValueError("density + gamma must be at most 1")
        return self


class BreadcrumbsElectParameters(BreadcrumbsParameters, ElectParameters):
    """The same, with a sign election."""


class SceParameters(LambdaParameters):
    """Select by variance, weigh by energy, elect signs."""

    density: Density = Field(default=1.0, description="fraction of positions kept, by variance over the inputs")


class SlerpParameters(Parameters):
    """Where on the arc between two inputs."""

    t: float | None = Field(
        default=None, ge=0, le=1, description="place on the arc: 0: the first, 1: the second; none: by the weights"
    )


class KarcherParameters(Parameters):
    """The iteration of the spherical mean."""

    iterations: int = Field(default=10, ge=1, le=1000)
    tolerance: float = Field(default=1e-5, gt=0, lt=1, description="length of a step that ends it, radians")


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """One row of the table."""

    name: str
    summary: str
    consensus: Consensus
    spaces: tuple[Space, ...]
    """The first is the default."""
    parameters: type[Parameters] = NoParameters
    sparsify: Sparsify = Sparsify.NONE
    weights: Weights = Weights.SIGNED
    paper: str = ""
    random: bool = False
    max_inputs: int | None = None
    min_inputs: int = 1
    defaults_by_space: Mapping[Space, Mapping[str, Any]] | None = None
    """They differ from the parameters' own defaults in some space."""
    blends: bool = True
    """It tells whether the ``model`` field takes it by default."""


_LINEAR: Final = (Space.CONCAT, Space.KNOTS, Space.CORE, Space.DELTA, Space.FACTOR)
_EXACT: Final = (Space.CONCAT,)
_DELTA: Final = (Space.DELTA, Space.KNOTS, Space.CORE)
_DENSE_IS_TRIMMED: Final = {Space.KNOTS: {"density": 1.0}, Space.CORE: {"density": 1.0}}

_TIES_PAPER: Final = "arXiv:2306.01708"
_DARE_PAPER: Final = "arXiv:2311.03099"
_DELLA_PAPER: Final = "arXiv:2406.11617"
_CRUMBS_PAPER: Final = "arXiv:2312.06795"

_ROWS: Final = (
    MethodSpec("task_arithmetic", "Σ w·Δ", Consensus.SUM, _LINEAR, paper="arXiv:2212.04089"),
    MethodSpec("linear", "Σ w·Δ with weights divided by their sum", Consensus.NORMALIZED_SUM, _LINEAR,
               paper="arXiv:2203.05482"),
    MethodSpec("cat", "Σ w·Δ at the lossless rank, factors side by side", Consensus.SUM, _EXACT),
    MethodSpec("svd", "Σ w·Δ truncated to the best approximation of a rank", Consensus.SUM, _EXACT),
    MethodSpec("passthrough", "one adapter per module, scaled", Consensus.PICK, _EXACT, blends=False),
    MethodSpec("slerp", "the arc between two deltas", Consensus.SLERP, _EXACT, SlerpParameters, weights=Weights.SHARES,
               min_inputs=2, max_inputs=2),
    MethodSpec("multislerp", "one step of the spherical mean, from the weighted mean", Consensus.MULTISLERP, _EXACT,
               weights=Weights.SHARES),
    MethodSpec("karcher", "the spherical mean of the deltas' directions", Consensus.KARCHER, _EXACT, KarcherParameters,
               weights=Weights.SHARES),
    MethodSpec("model_stock", "the mean, shrunk by how little the deltas agree", Consensus.MODEL_STOCK, _EXACT,
               weights=Weights.NONE, paper="arXiv:2403.19522"),
    MethodSpec("ties", "trim, elect signs, average what agrees", Consensus.ELECT,
               (Space.KNOTS, Space.DELTA, Space.CORE, Space.FACTOR), TiesParameters, Sparsify.TRIM, Weights.RELATIVE,
               _TIES_PAPER, defaults_by_space=_DENSE_IS_TRIMMED),
    MethodSpec("magnitude_prune", "trim by magnitude, then Σ w·Δ", Consensus.SUM, (*_DELTA, Space.FACTOR),
               TrimParameters, Sparsify.TRIM, paper=_TIES_PAPER),
    MethodSpec("dare_linear", "drop entries by chance and rescale, then Σ w·Δ", Consensus.SUM, (*_DELTA, Space.FACTOR),
               DropParameters, Sparsify.DROP, paper=_DARE_PAPER, random=True),
    MethodSpec("dare_ties", "drop entries by chance and rescale, then elect signs", Consensus.ELECT,
               (*_DELTA, Space.FACTOR), DropElectParameters, Sparsify.DROP, Weights.RELATIVE, _DARE_PAPER, random=True),
    MethodSpec("della_linear", "drop by chance, small entries likelier, then Σ w·Δ", Consensus.SUM, _DELTA,
               DellaParameters, Sparsify.DELLA, paper=_DELLA_PAPER, random=True, blends=False),
    MethodSpec("della", "drop by chance, small entries likelier, then elect signs", Consensus.ELECT, _DELTA,
               DellaElectParameters, Sparsify.DELLA, Weights.RELATIVE, _DELLA_PAPER, random=True,
               blends=False),
    MethodSpec("breadcrumbs", "drop the largest and the smallest entries, then Σ w·Δ", Consensus.SUM, _DELTA,
               BreadcrumbsParameters, Sparsify.BREADCRUMBS, paper=_CRUMBS_PAPER, blends=False),
    MethodSpec("breadcrumbs_ties", "drop the largest and the smallest entries, then elect signs", Consensus.ELECT,
               _DELTA, BreadcrumbsElectParameters, Sparsify.BREADCRUMBS, Weights.RELATIVE, _CRUMBS_PAPER,
               blends=False),
    MethodSpec("sce", "select by variance, weigh by energy, elect signs", Consensus.SCE,
               (Space.KNOTS, Space.DELTA, Space.CORE), SceParameters, weights=Weights.RELATIVE,
               paper="arXiv:2408.07990"),
    MethodSpec("tsv", "decorrelate the singular vectors of the inputs", Consensus.TSV, (Space.CORE,), LambdaParameters,
               weights=Weights.RELATIVE, paper="arXiv:2412.00081"),
    MethodSpec("iso_c", "Σ w·Δ cut to the output rank, then all singular values set to their mean", Consensus.ISO_C,
               (Space.CORE,), LambdaParameters, paper="arXiv:2502.04959"),
)  # fmt: skip


def _table(*rows: MethodSpec) -> Mapping[str, MethodSpec]:
    table = {row.name: row for row in rows}
    assert len(table) == len(rows), "two methods share a name"
    return table


METHODS: Final = _table(*_ROWS)
"""It has every method by name."""


def method(name: str) -> MethodSpec:
    """The row named ``name``.

    Raises:
        UnknownMethod: there is none; lists the known ones.
    """
    if name not in METHODS:
        raise UnknownMethod(name, tuple(METHODS))
    return METHODS[name]


def typed_parameters(recipe: Recipe) -> Parameters:
    """The recipe's parameters as their method's own type, defaults of the space filled in.

    Raises:
        UnknownMethod, SpaceRefused, ParameterRefused.
    """
    spec = method(recipe.method)
    defaults = (spec.defaults_by_space or {}).get(space_of(recipe), {})
    try:
        return spec.parameters.model_validate({**defaults, **recipe.parameters})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "density"
        raise ParameterRefused(spec.name, name, told(first)) from error


def space_of(recipe: Recipe) -> Space:
    """The space the recipe asks for, or its method's default.

    Raises:
        UnknownMethod, SpaceRefused.
    """
    spec = method(recipe.method)
    if recipe.space is None:
        return spec.spaces[0]
    if recipe.space not in spec.spaces:
        raise SpaceRefused(spec.name, recipe.space, spec.spaces)
    return Space(recipe.space)


def complete(recipe: Recipe) -> Recipe:
    """The recipe with nothing left to a default, so that recipes that mean the same have one digest.

    The seed of a method without chance becomes 0, and the inputs stand in order of name; on an arc from the first to
    the second, which slerp goes, they stay as they are.

    Raises:
        UnknownMethod, SpaceRefused, ParameterRefused, InputCountRefused.
    """
    spec = method(recipe.method)
    space = space_of(recipe)
    count = len(recipe.inputs)
    if count < spec.min_inputs or (spec.max_inputs is not None and count > spec.max_inputs):
        wanted = f"{spec.min_inputs}" if spec.min_inputs == spec.max_inputs else f"at least {spec.min_inputs}"
        raise InputCountRefused(spec.name, count, f"{wanted} inputs")
    parameters = typed_parameters(recipe).model_dump(mode="json", exclude_none=True)
    seed = recipe.seed if spec.random else 0
    inputs = recipe.inputs
    if spec.consensus is not Consensus.SLERP:
        inputs = tuple(sorted(inputs, key=lambda entry: entry.adapter))
    # Without adapters to keep clear of there are no rows either.
    rows = recipe.orthogonalize_rows and bool(recipe.orthogonalize_against)
    return recipe.model_copy(
        update={
            "space": str(space), "parameters": parameters, "seed": seed, "inputs": inputs, "orthogonalize_rows": rows,
        },
    )  # fmt: skip


def shorten(recipe: Recipe) -> Recipe:
    """The inverse of `complete`, for people: what a default says is left out. Completing it again gives the same.

    Raises:
        UnknownMethod, SpaceRefused, ParameterRefused.
    """
    spec, space = method(recipe.method), space_of(recipe)
    defaults = (spec.defaults_by_space or {}).get(space, {})
    plain = spec.parameters.model_validate(defaults).model_dump(mode="json")
    kept = {name: value for name, value in sorted(recipe.parameters.items()) if plain.get(name) != value}
    return recipe.model_copy(update={"space": None if space is spec.spaces[0] else str(space), "parameters": kept})


def unchanged_input(recipe: Recipe) -> str | None:
    """The one input that a completed recipe leaves as it is: ``sql``, ``1.0*sql`` or ``linear(3*sql)``; else None."""
    entry, *others = recipe.inputs
    spec = method(recipe.method)
    is_plain = spec.sparsify is Sparsify.NONE and Output() == recipe.output
    is_plain &= not (recipe.orthogonalize_against or recipe.norm_balance or recipe.calibrate)
    if others or not is_plain or isinstance(entry.weight, tuple):
        return None
    if spec.consensus is Consensus.NORMALIZED_SUM and recipe.space == str(spec.spaces[0]):
        return entry.adapter if entry.weight else None
    return entry.adapter if spec.consensus is Consensus.SUM and entry.weight == 1 else None
