"""Blends of engines in processes of their own: each engine builds and keeps its own, and a server only says which."""

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from amalgam.domain.blend import blend_name
from amalgam.engine.protocol import Engine, LoadableVersion
from amalgam.services.blend_tier import Build
from amalgam.telemetry.context import note_adapter

_MOST_KNOWN: Final = 4096


@dataclass(frozen=True, slots=True)
class _Known:
    version: LoadableVersion
    inputs: frozenset[int]


class BlendsElsewhere:
    """Stands in for `BlendTier`, without files and memory. The engine that answers has the blend, or builds it first.

    Args:
        engine: that numbers what is asked of it.
        budget_bytes: of one engine.
    """

    def __init__(self, engine: Engine, budget_bytes: int) -> None:
        self._engine = engine
        self.budget_bytes = budget_bytes
        self._known: OrderedDict[str, _Known] = OrderedDict()

    def name_of(self, digest: str) -> str:
        """What the blend answers under, as `BlendTier.name_of`."""
        found = self._known.get(digest)
        if found is not None:
            return found.version.engine_name
        short = blend_name(digest)
        taken = any(one.version.engine_name == short for one in self._known.values())
        return blend_name(digest, len(digest)) if taken else short

    def has(self, digest: str) -> bool:
        """Whether it was asked for here of late; an engine may have let go of it, and builds it again."""
        return digest in self._known

    @asynccontextmanager
    async def hold(
        self, digest: str, reserve_bytes: int, begin: Callable[[], Build], client: str = ""
    ) -> AsyncIterator[LoadableVersion]:
        """The blend as the engine is asked for it.

        Args:
            digest: of the recipe.
            reserve_bytes: no smaller than what will be written.
            begin: called where the blend is new to this server; may refuse.
            client: whose memory it takes.
        """
        known, build = self._known.get(digest), None
        if known is None:
            name, build = self.name_of(digest), begin()
            plan = build.plan()
            assert plan.reserve_bytes == reserve_bytes
            known = _Known(LoadableVersion(name, self._engine.new_blend_id(), Path(), plan=plan), build.inputs)
            self._enter(digest, known)
        self._known.move_to_end(digest)
        version = known.version
        assert version.plan is not None
        note_adapter(version.engine_name)
        try:
            yield replace(version, plan=version.plan.model_copy(update={"client": client}))
        except BaseException:
            if build is not None:
                # It may never have been built, and whoever asks next is told as if it were new.
                self._known.pop(digest, None)
            raise
        finally:
            if build is not None:
                await build.release()

    def _enter(self, digest: str, known: _Known) -> None:
        self._known[digest] = known
        if len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)

    def retire(self, versions: Set[int]) -> None:
        """Forget the blends of deleted versions; an engine lets go of them when it is told of the deletion."""
        for digest in [digest for digest, known in self._known.items() if known.inputs & versions]:
            del self._known[digest]

    async def close(self) -> None:
        """Nothing is held here."""
