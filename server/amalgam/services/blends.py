"""Blends: adapters that a request describes in its ``model`` field, from the expression to a held version.

Names are pinned to versions against the catalog, the recipe is brought into one spelling, and its digest names the
result: two clients who mean the same share it. Nothing here touches the durable store.
"""

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Final

from amalgam.domain.adapter import AdapterVersion, BaseModelSpec, VersionRef
from amalgam.domain.blend import BlendInput, BlendOrder, is_blend_name
from amalgam.domain.expression import ParsedExpression, is_expression, locate_expression, print_expression
from amalgam.domain.recipe import Recipe
from amalgam.engine.protocol import LoadableVersion
from amalgam.errors import AmalgamError
from amalgam.errors.blends import BlendMethodRefused, BlendRefused, BlendsOff, SeedNeeded, UnknownBlendInput
from amalgam.errors.merging import OutputTooLarge, TooManyInputs
from amalgam.errors.requests import ModelNotFound
from amalgam.merge.methods import Space, complete, method, shorten, space_of, unchanged_input
from amalgam.services.blend_limits import BlendsPerMinute
from amalgam.services.blend_tier import BlendTier, Build
from amalgam.services.blender_link import BlenderLink
from amalgam.services.catalog import Catalog, Snapshot, Target
from amalgam.services.usage import Usage
from amalgam.settings import Settings
from amalgam.store.adapter_store import AdapterStore
from amalgam.telemetry.metrics import Metrics

_REMEMBERED: Final = 1024
"""Recipes that can be asked for by the name of their blend."""
_OVERHEAD_BYTES: Final = 64 << 10
"""Of a blend beside its tensors: config, lineage, and what the header of the weights grows by."""


@dataclass(frozen=True, slots=True)
class BlendLimits:
    """What a request may describe."""

    enabled: bool
    max_inputs: int
    max_length: int
    """Of an expression, characters."""
    methods: Sequence[str]
    spaces: Sequence[str]
    per_minute: int
    """New blends of one client."""

    @classmethod
    def of(cls, settings: Settings) -> "BlendLimits":
        """The limits that an operator set."""
        return cls(
            enabled=settings.inline_blends,
            max_inputs=settings.blend_max_inputs,
            max_length=settings.blend_max_length,
            methods=settings.blend_methods,
            spaces=settings.blend_spaces,
            per_minute=settings.blends_per_minute,
        )


@dataclass(frozen=True, slots=True)
class Blend:
    """What an expression means now: a completed recipe over exact versions."""

    digest: str
    recipe: Recipe
    expression: str
    """The recipe in one spelling; reads back as the same digest."""
    versions: Mapping[str, AdapterVersion]
    """By the recipe's spelling."""
    parts: Mapping[str, int]
    """Columns of the client's own spelling, for what is found wrong later."""
    parse_s: float
    """Seconds that it took to find all this out."""

    def reserve_bytes(self, base: BaseModelSpec) -> int:
        """No smaller than what it will take.

        Side by side, factors are as large as apart; on deltas any module of the base model may get the rank asked for.
        """
        bytes_each = 4 if self.recipe.output.dtype == "float32" else 2
        # The inputs are stored in two bytes an entry, or more.
        reserve = bytes_each // 2 * sum(version.size_bytes for version in self.versions.values())
        if self.recipe.space == Space.DELTA:
            asked = self.recipe.output.rank
            rank = min(asked, base.max_lora_rank) if isinstance(asked, int) else base.max_lora_rank
            sides = sum(rows + columns for rows, columns in base.linear_shapes.values())
            reserve = rank * min(reserve, bytes_each * sides)
        return reserve + _OVERHEAD_BYTES


class Blends:
    """Reads expressions, refuses what is beyond the limits, and lends what they describe."""

    def __init__(
        self,
        catalog: Catalog,
        store: AdapterStore,
        usage: Usage,
        tier: BlendTier,
        blender: BlenderLink,
        limits: BlendLimits,
        clock: Callable[[], float] = time.perf_counter,
        metrics: Metrics | None = None,
    ) -> None:
        """Build it.

        Raises:
            UnknownMethod: the limits name a method that is not in the table.
        """
        for name in limits.methods:
            method(name)
        self._catalog = catalog
        self._store = store
        self._usage = usage
        self._tier = tier
        self._blender = blender
        self._limits = limits
        self._rate = BlendsPerMinute(limits.per_minute, clock)
        self._clock = clock
        self._metrics = metrics or Metrics()
        self._order_ids = count(1)
        self._known: OrderedDict[str, Recipe] = OrderedDict()
        self._merged: tuple[Snapshot, dict[str, AdapterVersion]] = (catalog.snapshot, {})

    @staticmethod
    def concerns(model: str) -> bool:
        """Whether ``model`` is an expression or the name of a blend."""
        return is_expression(model) or is_blend_name(model)

    def resolve(self, model: str) -> Target | Blend:
        """What an expression, or the name of a blend, means now; a version where it is one by another name.

        Raises:
            BlendsOff, InvalidExpression, BlendMethodRefused, SeedNeeded, TooManyInputs: what is asked for.
            UnknownBlendInput, ModelNotFound: who is named. Besides, what a recipe is refused for.
        """
        if not self._limits.enabled:
            raise BlendsOff
        began = self._clock()
        try:
            if is_blend_name(model):
                return self._pinned(self._named(model), began)
            read = locate_expression(model, max_length=self._limits.max_length)
            self._check(read)
            return self._pinned(read, began)
        except AmalgamError as error:
            # Whatever part of a recipe is at fault, the request's field is this one.
            error.param = "model"
            raise

    def _named(self, name: str) -> ParsedExpression:
        recipe = self._known.get(name)
        if recipe is None:
            raise ModelNotFound(name)
        return ParsedExpression(recipe, {}, {})

    def _check(self, read: ParsedExpression) -> None:
        """The limits on what may be described."""
        recipe, limits = read.recipe, self._limits
        if len(recipe.adapters) > limits.max_inputs:
            raise TooManyInputs(len(recipe.adapters), limits.max_inputs, "AMALGAM_BLEND_MAX_INPUTS")
        spec, space = method(recipe.method), space_of(recipe)
        at = read.parts.get("method", 1)
        if spec.name not in limits.methods:
            raise BlendMethodRefused("method", spec.name, at, limits.methods, "AMALGAM_BLEND_METHODS")
        if space not in limits.spaces:
            column = read.parts.get("space", at)
            raise BlendMethodRefused("space", str(space), column, limits.spaces, "AMALGAM_BLEND_SPACES")
        if spec.random and "seed" not in recipe.model_fields_set:
            raise SeedNeeded(spec.name, at)

    def _pinned(self, read: ParsedExpression, began: float) -> Target | Blend:
        recipe = read.recipe
        refs: dict[str, VersionRef] = {}
        versions: dict[str, AdapterVersion] = {}
        for name in recipe.adapters:
            version = self._version(name, read.adapters.get(name, 1))
            refs[name] = version.ref
            versions[str(version.ref)] = version
        full = complete(recipe.pin(refs))
        same = unchanged_input(full)
        if same is not None:
            return Target(same, versions[same])
        digest = full.digest()
        expression = print_expression(shorten(full), always_seed=method(full.method).random)
        assert expression is not None, "an expression has plain weights only"
        merged = self._published(digest)
        if merged is not None:
            return Target(str(merged.ref), merged, expression)
        return Blend(digest, full, expression, versions, read.parts, self._clock() - began)

    def _version(self, name: str, column: int) -> AdapterVersion:
        try:
            version = self._catalog.resolve(name).version
        except ModelNotFound as error:
            raise UnknownBlendInput(name, column, error.near) from None
        if version is None:
            # The base model is under every adapter already.
            raise UnknownBlendInput(name, column)
        return version

    def _published(self, digest: str) -> AdapterVersion | None:
        """The live version that was merged by that very recipe; its weights are the blend's."""
        snapshot, merged = self._merged
        if snapshot is not self._catalog.snapshot:
            snapshot = self._catalog.snapshot
            merged = {v.recipe_digest: v for v in snapshot.versions.values() if v.recipe_digest is not None}
            self._merged = (snapshot, merged)
        return merged.get(digest)

    def describe(self, blend: Blend) -> Target:
        """The blend as an answer names it."""
        return Target(self._tier.name_of(blend.digest), None, blend.expression)

    @asynccontextmanager
    async def hold(self, blend: Blend, client: str) -> AsyncIterator[LoadableVersion]:
        """The blend in memory while the block runs, built first where it is not there.

        Args:
            blend: from `resolve`, without an await in between.
            client: whose new blends are counted together.

        Raises:
            TooManyBlends, OutputTooLarge, BlendMemoryBusy, BlendUnavailable, BlendFailed, BlendRefused.
        """
        reserve = blend.reserve_bytes(self._catalog.base)
        if reserve > self._tier.budget_bytes:
            error = OutputTooLarge(reserve, self._tier.budget_bytes)
            error.param = "model"
            raise error

        inputs = [version.id for version in blend.versions.values()]

        async def run(place: LoadableVersion) -> int:
            return await self._build(blend, place, reserve)

        def begin() -> Build:
            self._rate.count(client)
            # Counted before the first await: a deletion that starts now waits until the blend is built.
            self._usage.begin(inputs)
            return Build(run, lambda: self._usage.end(inputs))

        async with self._tier.hold(blend.digest, reserve, begin) as version:
            self._remember(version.engine_name, blend.recipe)
            yield version

    async def _build(self, blend: Blend, place: LoadableVersion, max_bytes: int) -> int:
        inputs = {
            ref: BlendInput(
                folder=str(self._store.path(version.digest)), digest=version.digest, base=version.base_fingerprint
            )
            for ref, version in blend.versions.items()
        }
        order = BlendOrder(
            id=next(self._order_ids), recipe=blend.recipe, inputs=inputs, folder=str(place.folder),
            max_rank=self._catalog.base.max_lora_rank, max_bytes=max_bytes,
        )  # fmt: skip
        began = self._clock()
        reply = await self._blender.build(order)
        if reply.error is not None:
            error = reply.error
            column = blend.parts.get((error.param or "").rpartition(".")[2])
            raise BlendRefused(error.message, error.code, error.status, column)
        wait_s = self._clock() - began - sum(reply.seconds.values())
        self._metrics.blend_steps({"parse": blend.parse_s, "wait": wait_s, **reply.seconds})
        return reply.size_bytes

    def _remember(self, name: str, recipe: Recipe) -> None:
        self._known[name] = recipe
        self._known.move_to_end(name)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
