"""Recipe and headers in, work list out. Every refusal that needs no tensor happens here."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from amalgam.domain.adapter import AdapterHeader, ModuleHeader
from amalgam.domain.recipe import EnergyRank, Recipe, layer_of
from amalgam.errors.exports import ExportRankTooLarge
from amalgam.errors.merging import (
    AmbiguousChoice,
    BaseMismatch,
    MissingInput,
    NoCommonModule,
    NothingToMerge,
    RankTooLarge,
    ShapeMismatch,
    UnequalRanks,
    WeightRefused,
    ZeroWeightSum,
)
from amalgam.merge.methods import (
    Consensus,
    MethodSpec,
    Parameters,
    Space,
    Weights,
    complete,
    method,
    typed_parameters,
)

ZERO_WEIGHT_SUM = 1e-8
"""Below this a sum of weights is zero to the last digits of what people type."""


UNLIMITED_RANK = 1 << 30
"""No matrix has this rank: it is the limit of what goes into a checkpoint, which holds whole weights."""


@dataclass(frozen=True, slots=True)
class ModuleInput:
    """One adapter's part in one module."""

    index: int
    """It is its position among the recipe's inputs."""
    header: ModuleHeader
    weight: float
    """It is as the method's rule takes it: signed, or already divided by the sum."""


@dataclass(frozen=True, slots=True)
class ModulePlan:
    """One module of the result: out_features x in_features, from the inputs that adapt it with a weight."""

    name: str
    out_features: int
    in_features: int
    inputs: tuple[ModuleInput, ...]
    rank: int
    """It is the result's; an upper bound where the recipe asks for energy."""
    exact_rank: int
    """The result would have it if nothing were cut."""
    references: tuple[ModuleHeader | None, ...]
    """They are of the adapters to stay orthogonal to, in the recipe's order; None where one does not adapt the module.
    """

    @property
    def stacked_rank(self) -> int:
        """R, the sum of the inputs' ranks."""
        return sum(part.header.rank for part in self.inputs)

    @property
    def shape_key(self) -> tuple[object, ...]:
        """Equal for modules that can be computed in one batch."""
        ranks = tuple((part.index, part.header.rank) for part in self.inputs)
        references = tuple(header.rank if header else 0 for header in self.references)
        return (self.out_features, self.in_features, ranks, references, self.rank)


@dataclass(frozen=True, slots=True)
class MergePlan:
    """Everything a run needs besides the tensors."""

    recipe: Recipe
    """It is completed: nothing is left to a default."""
    spec: MethodSpec
    space: Space
    parameters: Parameters
    groups: tuple[tuple[ModulePlan, ...], ...]
    """Modules of one shape are together, in order of first appearance."""
    partial: Mapping[str, tuple[str, ...]]
    """It maps a module to the inputs with a weight there that do not adapt it."""
    base_model: str | None
    task_types: frozenset[str]
    """They are those of the inputs that say one."""
    limit: int
    """It is the largest rank the result may have."""
    warnings: tuple[str, ...]

    @property
    def modules(self) -> tuple[ModulePlan, ...]:
        """All modules, in order of name within groups of one shape."""
        return tuple(module for group in self.groups for module in group)

    @property
    def rank(self) -> int:
        """Largest rank of the result; an upper bound where the recipe asks for energy."""
        return max(module.rank for module in self.modules)

    @property
    def exact_rank(self) -> int:
        """Largest rank that the result would have if nothing were cut."""
        return max(module.exact_rank for module in self.modules)

    @property
    def task_type(self) -> str | None:
        """What all inputs that say it were trained for; None where they say nothing, or different things."""
        return next(iter(self.task_types)) if len(self.task_types) == 1 else None

    @property
    def input_bytes(self) -> int:
        """Bytes of the factors that are read, at four bytes an entry."""
        return 4 * sum(m.stacked_rank * (m.in_features + m.out_features) for m in self.modules)

    @property
    def output_bytes(self) -> int:
        """Bytes of the result's factors in the recipe's dtype, at the planned ranks."""
        width = 4 if self.recipe.output.dtype == "float32" else 2
        return width * sum(m.rank * (m.in_features + m.out_features) for m in self.modules)


def plan(
    recipe: Recipe,
    headers: Mapping[str, AdapterHeader],
    *,
    max_rank: int,
    bases: Mapping[str, str | None] | None = None,
) -> MergePlan:
    """Check a recipe against its inputs' headers and lay out the work.

    Args:
        recipe: Pinned or not; every entry of ``recipe.adapters`` must be in ``headers``.
        headers: By the recipe's own spelling of the adapter.
        max_rank: Largest rank that serving allows.
        bases: Identity of each input's base model, where known; two that differ are refused.

    Raises:
        UnknownMethod, SpaceRefused, ParameterRefused, InputCountRefused: the method is wrong for the recipe.
        MissingInput, ShapeMismatch, BaseMismatch, NoCommonModule, UnequalRanks: the inputs do not fit together.
        WeightRefused, ZeroWeightSum, AmbiguousChoice, NothingToMerge: the weights do not fit the method.
        RankTooLarge: the result would not be servable.
    """
    parameters = typed_parameters(recipe)
    recipe = complete(recipe)
    spec, space = method(recipe.method), Space(recipe.space or "")
    for adapter in recipe.adapters:
        if adapter not in headers:
            raise MissingInput(adapter)
    _check_bases(recipe, bases or {})
    if getattr(parameters, "t", None) is not None and any(entry.weight != 1 for entry in recipe.inputs):
        raise WeightRefused(spec.name, "the parameter t says where on the arc, so leave them at 1, or leave out t")
    if spec.consensus is not Consensus.PICK:
        _check_common(recipe, headers)
    layout = _Layout(recipe, spec, space, headers, max_rank)
    groups: dict[tuple[object, ...], list[ModulePlan]] = {}
    for name in layout.module_names():
        module = layout.module(name)
        if module is not None:
            groups.setdefault(module.shape_key, []).append(module)
    if not groups:
        raise NothingToMerge
    base_models = [headers[entry.adapter].base_model for entry in recipe.inputs]
    return MergePlan(
        recipe=recipe,
        spec=spec,
        space=space,
        parameters=parameters,
        groups=tuple(tuple(group) for group in groups.values()),
        partial=layout.partial,
        base_model=next((base for base in base_models if base), None),
        task_types=frozenset(task for entry in recipe.inputs if (task := headers[entry.adapter].task_type)),
        limit=max_rank,
        warnings=tuple(layout.warnings()),
    )


def require_export_room(layout: MergePlan, workspace_bytes: int) -> None:
    """Refuse an export whose factors have to be held and cannot be, rather than cut it to what fits.

    In delta space a result has full rank, so that its factors are larger than the weights themselves.

    Args:
        layout: Of the export.
        workspace_bytes: Most bytes of the factors, in float32.

    Raises:
        ExportRankTooLarge: says which rank would fit.
    """
    needed = sum(4 * module.rank * (module.in_features + module.out_features) for module in layout.modules)
    if layout.space is Space.DELTA and needed > workspace_bytes:
        a_rank = sum(4 * (module.in_features + module.out_features) for module in layout.modules)
        raise ExportRankTooLarge(layout.rank, needed, workspace_bytes, workspace_bytes // a_rank)


def _check_bases(recipe: Recipe, bases: Mapping[str, str | None]) -> None:
    known = [(name, base) for name in recipe.adapters if (base := bases.get(name))]
    if len({base for _, base in known}) > 1 and not recipe.allow_base_mismatch:
        raise BaseMismatch(known)


def _check_common(recipe: Recipe, headers: Mapping[str, AdapterHeader]) -> None:
    """Every input shares a module with another one, where there are others."""
    names = [entry.adapter for entry in recipe.inputs]
    if len(names) == 1:
        return
    counts = Counter(module for name in names for module in headers[name].modules)
    for name in names:
        modules = headers[name].modules
        if modules and all(counts[module] == 1 for module in modules):
            other = next((module for module in counts if module not in modules), "no module at all")
            raise NoCommonModule(name, next(iter(modules)), other)


class _Layout:
    """Lays out one module after the other; remembers what is partial."""

    def __init__(
        self, recipe: Recipe, spec: MethodSpec, space: Space, headers: Mapping[str, AdapterHeader], max_rank: int
    ) -> None:
        self.recipe = recipe
        self.spec = spec
        self.space = space
        self.adapters = tuple(entry.adapter for entry in recipe.inputs)
        self.headers = tuple(headers[name] for name in self.adapters)
        self.references = tuple(headers[name] for name in recipe.orthogonalize_against)
        self.max_rank = max_rank
        self.partial: dict[str, tuple[str, ...]] = {}
        self.cut: list[tuple[int, int]] = []
        """(exact rank, planned rank) of every module that is cut."""
        layers = (layer_of(name) for header in self.headers for name in header.modules)
        self.layer_count = 1 + max((layer for layer in layers if layer is not None), default=0)

    def module_names(self) -> list[str]:
        """Every module any input adapts, in an order that does not depend on the inputs'."""
        return sorted({name for header in self.headers for name in header.modules}, key=_natural)

    def warnings(self) -> list[str]:
        found = []
        if self.partial:
            count = len(self.partial)
            found.append(f"{count} modules are not adapted by every input; absent deltas count as zero or abstain")
        if self.cut:
            exact, rank = max(self.cut)
            found.append(
                f"{len(self.cut)} modules are cut: exact rank up to {exact}, planned rank {rank}; "
                "the energy kept says what that loses"
            )
        if self.space is Space.FACTOR:
            found.append("space factor multiplies sums of factors, which is not the sum of the deltas; see concat")
        return found

    def module(self, name: str) -> ModulePlan | None:
        """The work for one module; None where no input has a weight there."""
        wanted = [entry.weight_at(name, self.layer_count) for entry in self.recipe.inputs]
        weights = _WEIGHTS[self.spec.weights](self, name, wanted)
        parts = tuple(
            ModuleInput(index, header.modules[name], weights[index])
            for index, header in enumerate(self.headers)
            if name in header.modules and weights[index] != 0
        )
        if not parts:
            return None
        if self.spec.consensus is not Consensus.SLERP:
            # Sums are taken in one order whatever the recipe's, so that results agree to the last bit.
            parts = tuple(sorted(parts, key=lambda part: self.adapters[part.index]))
        absent = [self.adapters[i] for i, header in enumerate(self.headers) if wanted[i] and name not in header.modules]
        if absent:
            self.partial[name] = tuple(absent)
        references = tuple(header.modules.get(name) for header in self.references)
        self._check_shapes(name, parts, references)
        if self.spec.consensus is Consensus.PICK and len(parts) > 1:
            raise AmbiguousChoice(name, [self.adapters[part.index] for part in parts])
        out_features, in_features = parts[0].header.out_features, parts[0].header.in_features
        exact = self._exact_rank(parts, min(out_features, in_features))
        rank = self._rank(parts, exact)
        if rank < exact:
            self.cut.append((exact, rank))
        return ModulePlan(name, out_features, in_features, parts, rank, exact, references)

    def _check_shapes(
        self, name: str, parts: tuple[ModuleInput, ...], references: tuple[ModuleHeader | None, ...]
    ) -> None:
        found = [(self.adapters[part.index], part.header) for part in parts]
        against = self.recipe.orthogonalize_against
        found += [(against[i], header) for i, header in enumerate(references) if header is not None]
        shapes = [(adapter, header.out_features, header.in_features) for adapter, header in found]
        if len({shape[1:] for shape in shapes}) > 1:
            raise ShapeMismatch(name, shapes)
        ranks = [part.header.rank for part in parts]
        if self.space is Space.FACTOR and len(set(ranks)) > 1:
            raise UnequalRanks(name, ranks)

    def _exact_rank(self, parts: tuple[ModuleInput, ...], full: int) -> int:
        """Rank that a result has at most; ``full`` is that of any matrix of the module's shape."""
        if self.space is Space.DELTA:
            return full
        ranks = [part.header.rank for part in parts]
        return ranks[0] if self.space is Space.FACTOR else min(sum(ranks), full)

    def _rank(self, parts: tuple[ModuleInput, ...], lossless: int) -> int:
        """Rank of the result in one module, before any energy is known."""
        ranks = [part.header.rank for part in parts]
        asked = self.recipe.output.rank
        if isinstance(asked, int):
            if asked > self.max_rank:
                raise RankTooLarge(asked, self.max_rank)
            return min(asked, lossless)
        if self.spec.name == "cat" and lossless > self.max_rank:
            raise RankTooLarge(lossless, self.max_rank)
        if self.spec.name == "svd" and not isinstance(asked, EnergyRank):
            return min(max(ranks), lossless, self.max_rank)
        return min(lossless, self.max_rank)

    def signed(self, name: str, weights: list[float]) -> list[float]:
        if self.spec.consensus is not Consensus.NORMALIZED_SUM:
            return weights
        total = sum(weights)
        if not any(weights):
            return weights
        if abs(total) < ZERO_WEIGHT_SUM:
            raise ZeroWeightSum(self.spec.name, name)
        return [weight / total for weight in weights]

    def shares(self, name: str, weights: list[float]) -> list[float]:
        """Non-negative weights over the inputs that adapt the module, divided by their sum."""
        if any(weight < 0 for weight in weights):
            raise WeightRefused(self.spec.name, f"they are shares and must not be negative, as in {name}")
        if not any(weights):
            return weights
        pairs = zip(weights, self.headers, strict=True)
        present = [weight if name in header.modules else 0.0 for weight, header in pairs]
        total = sum(present)
        return [weight / total for weight in present] if total > 0 else present

    def none(self, name: str, weights: list[float]) -> list[float]:
        if any(weight != 1 for weight in weights):
            raise WeightRefused(self.spec.name, f"it has none, so leave them at 1 ({name})")
        return weights

    def relative(self, name: str, weights: list[float]) -> list[float]:
        return weights


_WEIGHTS: Mapping[Weights, Callable[[_Layout, str, list[float]], list[float]]] = {
    Weights.SIGNED: _Layout.signed,
    Weights.RELATIVE: _Layout.relative,
    Weights.SHARES: _Layout.shares,
    Weights.NONE: _Layout.none,
}


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which layer 2 comes before layer 10."""
    parts = name.split(".")
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]
