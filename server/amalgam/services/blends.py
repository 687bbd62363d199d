"""Blends: adapters that a request describes in its ``model`` field, from the expression to a held version.

Names are pinned to versions against the catalog, the recipe is brought into one spelling, and its digest names the
result: two clients who mean the same share it. Nothing here touches the durable store.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Final

from amalgam.domain.adapter import AdapterVersion, BaseModelSpec, VersionRef, widest
from amalgam.domain.blend import is_blend_name
from amalgam.domain.blend_plan import BlendPlan, PlannedInput
from amalgam.domain.error_report import ErrorReport
from amalgam.domain.expression import ParsedExpression, is_expression, locate_expression, print_expression
from amalgam.domain.messages import BlendInput, BlendOrder, Refusal
from amalgam.domain.recipe import DTYPES, Output, Recipe
from amalgam.domain.routing import Route
from amalgam.domain.scopes import EVERYTHING, Scopes
from amalgam.domain.tenant import BUILT_IN_TENANT
from amalgam.engine.protocol import LoadableVersion
from amalgam.errors import AmalgamError
from amalgam.errors.blends import BlendMethodRefused, BlendsOff, SeedNeeded, UnknownBlendInput
from amalgam.errors.merging import OutputTooLarge, TooManyInputs
from amalgam.errors.reported import ReportedError
from amalgam.errors.requests import ModelNotFound
from amalgam.errors.tenants import NotInScope
from amalgam.merge.methods import Space, complete, method, shorten, space_of, unchanged_input
from amalgam.services.blend_limits import BlendsPerMinute
from amalgam.services.blend_names import BlendNames
from amalgam.services.blend_tier import BlendTier, Build
from amalgam.services.blender_link import BlenderLink
from amalgam.services.blends_elsewhere import BlendsElsewhere
from amalgam.services.catalog import Catalog, Target
from amalgam.services.snapshot import Snapshot
from amalgam.services.versions_in_use import VersionsInUse
from amalgam.settings import Settings
from amalgam.store.adapter_store import AdapterStore
from amalgam.telemetry.context import note_blend_build
from amalgam.telemetry.metrics import Metrics
from amalgam.telemetry.no_metrics import NO_METRICS

_ASKED: Final = 4096
"""For so many names of blends it is known whose requests gave rise to them."""
_OVERHEAD_BYTES: Final = 64 << 10
"""A blend has so much beside its tensors: config, lineage, and what the header of the weights grows by."""


@dataclass(frozen=True, slots=True)
class BlendLimits:
    """What a request may describe."""

    enabled: bool
    max_inputs: int
    max_length: int
    """It bounds an expression, characters."""
    methods: Sequence[str]
    spaces: Sequence[str]
    per_minute: int
    """It bounds the new blends of one client."""

    @classmethod
    def of(cls, settings: Settings) -> "BlendLimits":
        """The limits that an operator set."""
        return cls(
            enabled=settings.blends.inline_blends,
            max_inputs=settings.blends.blend_max_inputs,
            max_length=settings.blends.blend_max_length,
            methods=settings.blends.blend_methods,
            spaces=settings.blends.blend_spaces,
            per_minute=settings.blends.blends_per_minute,
        )


@dataclass(frozen=True, slots=True)
class Blend:
    """What an expression means now: a completed recipe over exact versions."""

    digest: str
    recipe: Recipe
    expression: str
    """It is the recipe in one spelling, and reads back as the same digest."""
    versions: Mapping[str, AdapterVersion]
    """The keys are the recipe's spellings."""
    parts: Mapping[str, int]
    """They are columns of the client's own spelling, for what is found wrong later."""
    parse_s: float
    """It took so many seconds to find all this out."""
    tenant: str | None = None
    """This one described it; None: nobody who may know of it, as behind an alias."""
    shown: str | None = None
    """It is that of a `Target`."""
    route: Route | None = None
    """It is that of a `Target`."""

    def reserve_bytes(self, base: BaseModelSpec) -> int:
        """No smaller than what it will take.

        Side by side, factors are as large as apart; on deltas any module of the base model may get the rank asked for.
        """
        is_wide = self.recipe.output.dtype == "float32"
        bytes_each = 4 if is_wide else 2
        # Where it is not known, or not wide, an entry of an input may take half of what it takes in the blend.
        reserve = sum(
            version.size_bytes * (2 if is_wide and version.dtype != "float32" else 1)
            for version in self.versions.values()
        )
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
        usage: VersionsInUse,
        tier: BlendTier | BlendsElsewhere,
        blender: BlenderLink,
        limits: BlendLimits,
        names: BlendNames,
        clock: Callable[[], float] = time.perf_counter,
        metrics: Metrics = NO_METRICS,
        engine_dtype: Callable[[], str] = lambda: Output().dtype,
    ) -> None:
        """Build it.

        Args:
            names: What can be asked for by the name of its blend.
            engine_dtype: What the engine computes in: bfloat16, float16 or float32.
        """
        self._catalog = catalog
        self._store = store
        self._usage = usage
        self._tier = tier
        self._blender = blender
        self._limits = limits
        self._rate = BlendsPerMinute(limits.per_minute, clock)
        self._clock = clock
        self._metrics = metrics
        self._engine_dtype = engine_dtype
        self._order_ids = count(1)
        self._names = names
        catalog.on_change(self._let_go)
        self._askers: OrderedDict[str, frozenset[str]] = OrderedDict()

    @staticmethod
    def concerns(model: str) -> bool:
        """Whether ``model`` is an expression or the name of a blend."""
        return is_expression(model) or is_blend_name(model)

    def resolve(self, model: str, scopes: Scopes = EVERYTHING, tenant: str | None = BUILT_IN_TENANT) -> Target | Blend:
        """What an expression, or the name of a blend, means now; a version where it is one by another name.

        Args:
            model: an expression, or the name of a blend.
            scopes: what whoever asks may know of; each input has to be in scope, and what it means now.
            tenant: who asks.

        Raises:
            BlendsOff, InvalidExpression, BlendMethodRefused, SeedNeeded, TooManyInputs: what is asked for.
            UnknownBlendInput, ModelNotFound: who is named. Besides, what a recipe is refused for.
            NotInScope: blends are out of scope, or what an input's alias means is.
        """
        if not self._limits.enabled:
            raise BlendsOff
        if scopes.blends == "none":
            raise NotInScope("blends")
        began = self._clock()
        try:
            if is_blend_name(model):
                return self._pinned(self._named(model, scopes, tenant), began, scopes, tenant)
            read = locate_expression(model, max_length=self._limits.max_length)
            self._check(read)
            return self._pinned(read, began, scopes, tenant)
        except AmalgamError as error:
            # Whatever part of a recipe is at fault, the request's field is this one.
            raise error.at("model") from error

    def is_shown(self, name: str, scopes: Scopes, tenant: str | None) -> bool:
        """Whether a tenant may know of the blend ``name``."""
        if scopes.is_everything:
            return True
        recipe = self._names.recipe(name)
        if recipe is None or scopes.blends == "none" or not all(map(scopes.version, recipe.adapters)):
            return False
        return scopes.blends == "any" or tenant in self._askers.get(name, ())

    def _named(self, name: str, scopes: Scopes, tenant: str | None) -> ParsedExpression:
        recipe = self._names.recipe(name)
        if recipe is None or not self.is_shown(name, scopes, tenant):
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

    def _pinned(self, read: ParsedExpression, began: float, scopes: Scopes, tenant: str | None) -> Target | Blend:
        recipe = read.recipe
        refs: dict[str, VersionRef] = {}
        versions: dict[str, AdapterVersion] = {}
        for name in recipe.adapters:
            version = self._version(name, read.adapters.get(name, 1), scopes)
            refs[name] = version.ref
            versions[str(version.ref)] = version
        full = complete(recipe.pin(refs))
        same = unchanged_input(full)
        if same is not None:
            return Target(same, versions[same])
        typed = self._typed(full, versions.values())
        held = full if "dtype" in recipe.output.model_fields_set else typed
        # Merges are of the type that the expression says, or of the default one: either is what it asks for.
        for asked in (held, full):
            merged = self._published(asked.digest(), scopes)
            if merged is not None:
                return Target(str(merged.ref), merged, _printed(asked))
        expression = _printed(held, always_dtype=held != typed)
        return Blend(held.digest(), held, expression, versions, read.parts, self._clock() - began, tenant)

    def _typed(self, recipe: Recipe, inputs: Iterable[AdapterVersion]) -> Recipe:
        """``recipe`` in the engine's type; narrower only where every input is, so that none is rounded or widened."""
        dtype = self._engine_dtype()
        if dtype == "float32":
            dtype = widest(version.dtype for version in inputs) or dtype
        if dtype == recipe.output.dtype or dtype not in DTYPES:
            return recipe
        return recipe.model_copy(update={"output": recipe.output.model_copy(update={"dtype": dtype})})

    def _version(self, name: str, column: int, scopes: Scopes) -> AdapterVersion:
        try:
            version = self._catalog.resolve(name, scopes).version
        except ModelNotFound as error:
            raise UnknownBlendInput(name, column, error.near) from None
        if version is None:
            # The base model is under every adapter already.
            raise UnknownBlendInput(name, column)
        if not scopes.version(version.ref):
            # An alias: the answer names exact versions.
            raise NotInScope(f"what {name!r} means, which a blend would name")
        return version

    def _published(self, digest: str, scopes: Scopes) -> AdapterVersion | None:
        """A live version in scope that was merged by that very recipe; its weights are the blend's."""
        shown = [version for version in self._catalog.merged(digest) if scopes.version(version.ref)]
        return shown[-1] if shown else None

    def has(self, blend: Blend) -> bool:
        """Whether it is in memory or on its way there, so that it is not built anew."""
        return self._tier.has(blend.digest)

    def describe(self, blend: Blend) -> Target:
        """The blend as an answer names it."""
        return Target(self._tier.name_of(blend.digest), None, blend.expression)

    @asynccontextmanager
    async def hold(self, blend: Blend, client: str) -> AsyncIterator[LoadableVersion]:
        """The blend in memory while the block runs, built first where it is not there.

        Args:
            blend: from `resolve`, without an await in between.
            client: whose new blends are counted together, and whose memory they take.

        Raises:
            TooManyBlends, OutputTooLarge, BlendMemoryBusy, BlendUnavailable, BlendFailed, ReportedError.
        """
        reserve = blend.reserve_bytes(self._catalog.base)
        if reserve > self._tier.budget_bytes:
            raise OutputTooLarge(reserve, self._tier.budget_bytes).at("model")

        inputs = [version.id for version in blend.versions.values()]

        async def run(place: LoadableVersion) -> int:
            return await self._build(blend, place, reserve, client)

        def begin() -> Build:
            self._rate.count(client)
            note_blend_build()
            # Counted before the first await: a deletion that starts now waits until the blend is built.
            self._usage.begin(inputs)
            plan = partial(self._plan, blend, reserve, client)
            return Build(run, lambda: self._usage.end(inputs), plan, frozenset(inputs))

        async with self._tier.hold(blend.digest, reserve, begin, client) as version:
            self._note_asker(version.engine_name, blend.tenant)
            await self._names.remember(version.engine_name, blend.digest, blend.recipe)
            yield version

    def _plan(self, blend: Blend, reserve_bytes: int, client: str) -> BlendPlan:
        inputs = {
            ref: PlannedInput(lora_id=version.id, digest=version.digest, base=version.base_fingerprint)
            for ref, version in blend.versions.items()
        }
        return BlendPlan(
            digest=blend.digest, recipe=blend.recipe, inputs=inputs, columns=blend.parts, client=client,
            max_rank=self._catalog.base.max_lora_rank, reserve_bytes=reserve_bytes,
        )  # fmt: skip

    async def _build(self, blend: Blend, place: LoadableVersion, max_bytes: int, client: str) -> int:
        inputs = {}
        for ref, version in blend.versions.items():
            folder = await self._store.ready(version.digest)
            await asyncio.to_thread(self._store.checks.require_sound, version.digest)
            inputs[ref] = BlendInput(folder=str(folder), digest=version.digest, base=version.base_fingerprint)
        order = BlendOrder(
            id=next(self._order_ids), recipe=blend.recipe, inputs=inputs, folder=str(place.folder),
            max_rank=self._catalog.base.max_lora_rank, max_bytes=max_bytes,
        )  # fmt: skip
        began = self._clock()
        reply = await self._blender.build(order, client)
        if isinstance(reply, Refusal):
            raise in_expression(reply.error, blend.parts)
        wait_s = self._clock() - began - sum(reply.seconds.values())
        self._metrics.blend_steps({"parse": blend.parse_s, "wait": wait_s, **reply.seconds})
        return reply.size_bytes

    async def learn(self, name: str) -> bool:
        """Whether the name of a blend is known, here or, as it is found then, to another server."""
        return await self._names.learn(name)

    def _let_go(self, before: Snapshot, after: Snapshot) -> None:
        """Blends of what was deleted leave the memory: nobody can ask for them any more."""
        self._tier.retire(after.gone)

    def _note_asker(self, name: str, tenant: str | None) -> None:
        """A tenant may ask by the name for what it has described itself; known to this server alone."""
        asked = self._askers.pop(name, frozenset())
        if tenant is not None and tenant not in asked:
            asked |= {tenant}
        self._askers[name] = asked
        if len(self._askers) > _ASKED:
            self._askers.popitem(last=False)


def in_expression(report: ErrorReport, parts: Mapping[str, int]) -> ReportedError:
    """The error of the blend process, with its place in what the client wrote."""
    column = parts.get((report.param or "").rpartition(".")[2])
    place = "" if column is None else f" (Column {column} of the expression.)"
    return ReportedError(report.message + place, code=report.code, status=report.status, param="model")


def _printed(recipe: Recipe, *, always_dtype: bool = False) -> str:
    """The recipe of a blend in one spelling."""
    is_random = method(recipe.method).random
    expression = print_expression(shorten(recipe), always_seed=is_random, always_dtype=always_dtype)
    assert expression is not None, "an expression has plain weights only"
    return expression
