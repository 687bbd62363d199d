"""What a version was made from, and whether making it again gives the same bytes."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from amalgam.domain.adapter import AdapterVersion, VersionRef
from amalgam.domain.fit import ReadingFit
from amalgam.domain.lineage import KnownVersion, LineageEdge, LineageGraph, Rebuilt
from amalgam.domain.recipe import Recipe
from amalgam.errors.adapters import ArtifactDamaged, VersionNotFound
from amalgam.errors.merging import NotRebuildable
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.fit_jobs import FitJobRegistry
from amalgam.registry.profiles import ProfileRegistry
from amalgam.services.worker_link import WorkerLink
from amalgam.store.adapter_store import AdapterStore

MAX_NODES: Final = 1000
_REBUILD_S: Final = 600.0


class LineageService:
    """Reads lineages; builds nothing into the registry."""

    def __init__(
        self,
        registry: AdapterRegistry,
        store: AdapterStore,
        worker: WorkerLink,
        fits: FitJobRegistry,
        profiles: ProfileRegistry | None = None,
    ) -> None:
        self._registry = registry
        self._store = store
        self._worker = worker
        self._fits = fits
        self._profiles = profiles

    async def graph(self, name: str, number: int) -> LineageGraph:
        """The version, its inputs, theirs, and so on; deleted ones too, as their rows stay.

        Raises:
            VersionNotFound: the number was never given.
        """
        root = VersionRef(name, number)
        wanted, found = [root], dict[VersionRef, KnownVersion]()
        edges: list[LineageEdge] = []
        is_cut = False
        while wanted:
            rows = await self._registry.get_known(wanted)
            if not found and not rows:
                raise VersionNotFound(name, number)
            found |= rows
            behind = [edge for ref in wanted if ref in rows for edge in _edges(rows[ref].version)]
            edges += behind
            inputs = dict.fromkeys(ref for edge in behind if (ref := VersionRef.parse(edge.input)) is not None)
            wanted = [ref for ref in inputs if ref not in found]
            is_cut |= len(found) + len(wanted) > MAX_NODES
            wanted = wanted[: MAX_NODES - len(found)]
        ids = [known.version.id for known in found.values()]
        profiles = {} if self._profiles is None else await self._profiles.newest_of(ids)
        return LineageGraph(str(root), tuple(found.values()), tuple(edges), is_cut, profiles)

    async def rebuild(self, name: str, number: int) -> Rebuilt:
        """Build a merged version again from its lineage, in the worker, and compare; nothing is stored.

        Raises:
            AdapterNotFound, VersionNotFound: no such version.
            NotRebuildable: it was not merged here, or an input's files are gone.
            WorkerUnavailable, ReportedError: as of a plan's forecast.
        """
        version = await self._registry.get_version(name, number)
        lineage = version.lineage
        if lineage is None:
            raise NotRebuildable(str(version.ref), "it was not made by a merge")
        recipe = _recipe(version, lineage)
        for ref in recipe.adapters:
            await self._require_files(version, ref, lineage["inputs"][ref])
        reading = await self._reading(version, lineage)
        answer = await self._worker.rebuild(recipe, _limit(recipe, int(lineage["result"]["rank"])), _REBUILD_S, reading)
        return Rebuilt(version, answer.digest, answer.seconds)

    async def _reading(self, version: AdapterVersion, lineage: Mapping[str, Any]) -> ReadingFit | None:
        """The prompts that the version was fitted to, which its job has; None where it was not."""
        if (lineage.get("fit") or {}).get("method") != "iteris":
            return None
        found = await self._fits.reading_of(version.id)
        if found is None:
            raise NotRebuildable(str(version.ref), "the job that fitted it, which had its prompts, is gone")
        return found

    async def _require_files(self, version: AdapterVersion, ref: str, digest: str) -> None:
        try:
            await asyncio.to_thread(self._store.path, digest)
        except ArtifactDamaged:
            raise NotRebuildable(str(version.ref), f"the files of its input {ref} are gone") from None


def _edges(version: AdapterVersion) -> list[LineageEdge]:
    """What the lineage of a version names, in the recipe's order."""
    recipe: Mapping[str, Any] = (version.lineage or {}).get("recipe", {})
    output = str(version.ref)
    edges = [LineageEdge(entry["adapter"], output, entry.get("weight", 1.0), "input") for entry in
             recipe.get("inputs", ())]  # fmt: skip
    against = recipe.get("orthogonalize_against", ())
    return edges + [LineageEdge(ref, output, None, "orthogonalize_against") for ref in against]


def _recipe(version: AdapterVersion, lineage: Mapping[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(lineage["recipe"])
    except (KeyError, ValidationError):
        raise NotRebuildable(str(version.ref), "its recipe is of a release that this one cannot read") from None


def _limit(recipe: Recipe, built_rank: int) -> int:
    """The limit on ranks under which a recipe of automatic rank comes out as it did, whatever the limit is today."""
    asked = recipe.output.rank
    return max(built_rank, asked) if isinstance(asked, int) else built_rank
