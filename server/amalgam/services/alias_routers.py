"""Routers of aliases: what an operator asks for is checked, fitted beside the event loop, and explained."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from amalgam.domain.adapter import is_name
from amalgam.domain.alias import MAX_TARGET_LENGTH, Alias, AliasTarget
from amalgam.domain.in_scope import HIDDEN
from amalgam.domain.routing import (
    LEAST_EXAMPLES,
    MAX_ALL_EXAMPLES,
    Route,
    Router,
    RouterNumbers,
    RouterSpec,
    Said,
)
from amalgam.domain.scopes import Scopes
from amalgam.errors.aliases import AliasNotRouted
from amalgam.errors.requests import FieldRefused
from amalgam.registry.routers import RouterRegistry
from amalgam.routing.router import fit_router, nearest
from amalgam.services.catalog import Catalog
from amalgam.services.prompt_labels import PromptLabels

_NEAREST: Final = 5
_AT_ONCE: Final = 1
"""So many fits run at a time: each takes a core."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a router decides about what is said, with the names that may be told."""

    route: Route
    threshold: float
    margin: float
    nearest: Sequence[tuple[str, str, float]]
    """It has candidate, example and likeness, the most alike first; none of a candidate that may not be told."""


class AliasRouters:
    """What `AliasService` asks about routers.

    Args:
        catalog: what names mean.
        registry: what routers were fitted with.
        labels: tells prompts apart by the adapters.
    """

    def __init__(self, catalog: Catalog, registry: RouterRegistry, labels: PromptLabels) -> None:
        self.labels = labels
        self._catalog = catalog
        self._registry = registry
        self._turn = asyncio.Semaphore(_AT_ONCE)

    def spelled(self, spec: RouterSpec) -> RouterSpec:
        """The spec with every target as it is kept, without the base model's prefix.

        Raises:
            FieldRefused: a candidate twice, too few examples or too many, examples of what is no target, or a blend of
                what is no name.
        """
        short = self._catalog.short
        candidates = tuple(map(short, spec.candidates))
        examples = {short(name): texts for name, texts in spec.examples.items()}
        found = spec.model_copy(
            update={"candidates": candidates, "otherwise": short(spec.otherwise), "examples": examples}
        )
        _require_distinct(found)
        _require_examples(found)
        if found.blend:
            self._require_blendable(found)
        return found

    def _require_blendable(self, spec: RouterSpec) -> None:
        for index, candidate in enumerate(spec.candidates):
            name = candidate.partition("@")[0]
            if not is_name(name) or candidate in self._catalog.base.names or len(candidate) > MAX_TARGET_LENGTH // 4:
                reason = "cannot be blended by its score; name an adapter or a version, or leave blend out"
                raise FieldRefused(f"router.candidates.{index}", reason)

    async def fitted(self, spec: RouterSpec) -> tuple[Router, RouterNumbers]:
        """Fit in a thread of its own; requests go on meanwhile."""
        async with self._turn:
            return await asyncio.to_thread(fit_router, spec)

    async def examples(self, alias: Alias, scopes: Scopes) -> Mapping[str, Sequence[str]]:
        """What ``alias`` was fitted with, by target, of those that may be told.

        Raises:
            AliasNotRouted: weights choose among its targets.
        """
        if alias.router is None:
            raise AliasNotRouted(alias.name)
        numbers = (await self._registry.numbers([alias.router.digest])).get(alias.router.digest)
        kept = {} if numbers is None else numbers.examples
        return {name: texts for name, texts in kept.items() if self._catalog.covers(name, scopes)}

    async def explained(self, alias: Alias, said: Said, scopes: Scopes) -> Explanation:
        """How ``alias`` decides about ``said``, and the examples that are most like it.

        Raises:
            AliasNotRouted: weights choose among its targets.
        """
        router, route = alias.router, await asyncio.to_thread(self._catalog.route, alias, said)
        if router is None or route is None:
            raise AliasNotRouted(alias.name)

        def covers(name: str) -> bool:
            return self._catalog.covers(name, scopes)

        told = await self.examples(alias, scopes)
        seen = RouterNumbers(router.digest, {name: tuple(texts) for name, texts in told.items()}, b"")
        found = await asyncio.to_thread(nearest, seen, said, _NEAREST) if told else ()
        return Explanation(route.shown(covers, HIDDEN), router.threshold, router.margin, found)


def targets_of(spec: RouterSpec) -> tuple[AliasTarget, ...]:
    """Everything that a router may choose, each once."""
    return tuple(AliasTarget(model=name, weight=1) for name in dict.fromkeys((*spec.candidates, spec.otherwise)))


def _require_distinct(spec: RouterSpec) -> None:
    for index, candidate in enumerate(spec.candidates):
        if candidate in spec.candidates[:index]:
            raise FieldRefused(f"router.candidates.{index}", "is there before; name each candidate once")
    if spec.candidates == (spec.otherwise,):
        raise FieldRefused("router.otherwise", "is the only candidate; name another target for the rest")


def _require_examples(spec: RouterSpec) -> None:
    known = {*spec.candidates, spec.otherwise}
    for name in spec.examples:
        if name not in known:
            raise FieldRefused("router.by.examples", f"has examples of {name[:128]!r}, which is no target; add it")
    for name in spec.candidates:
        if len(set(spec.examples.get(name, ()))) < LEAST_EXAMPLES:
            reason = f"needs at least {LEAST_EXAMPLES} different examples of {name[:128]!r}; ten or more are better"
            raise FieldRefused("router.by.examples", reason)
    if sum(map(len, spec.examples.values())) > MAX_ALL_EXAMPLES:
        raise FieldRefused("router.by.examples", f"has more than {MAX_ALL_EXAMPLES} texts in all; leave some out")
