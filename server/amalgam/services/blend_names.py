"""Blends that can be asked for by their name: those of this process from memory, all others from the registry.

No request that names what is known here meets the registry. A name is written when its blend is held here for the first
time, before the first answer says it, so that the client may ask another server for it; and now and then while in use.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from amalgam.domain.recipe import Recipe
from amalgam.errors import AmalgamError
from amalgam.registry.blend_names import BlendNameRegistry
from amalgam.services.catch_up import CatchUp

logger = logging.getLogger(__name__)

_REMEMBERED: Final = 1024
"""So many recipes are in memory."""
_ASKED_AT_ONCE: Final = 64
"""One look at the registry is for so many names; further ones are not known for now."""
_WRITE_S: Final = 0.5
"""An answer waits for so long at most until its blend's name is written: the registry may be away."""
_WRITE_PERIOD_S: Final = 3600.0
_RETRY_S: Final = 10.0


@dataclass(slots=True)
class _Known:
    digest: str
    recipe: Recipe
    write_at: float
    """The registry is to be told then, by the clock."""


class BlendNames:
    """Name -> recipe.

    Args:
        registry: of all servers.
        keep_s: a name that nobody used for so long is forgotten, seconds.
        clock: monotonic seconds.
    """

    def __init__(self, registry: BlendNameRegistry, keep_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry = registry
        self._keep_s = keep_s
        self._clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._asked: set[str] = set()
        self._look = CatchUp(self._read)
        self._writing: set[asyncio.Task[None]] = set()

    def recipe(self, name: str) -> Recipe | None:
        """What is known here."""
        known = self._known.get(name)
        return None if known is None else known.recipe

    def _keep(self, name: str, digest: str, recipe: Recipe, write_at: float) -> _Known:
        known = self._known.setdefault(name, _Known(digest, recipe, write_at))
        self._known.move_to_end(name)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return known

    async def remember(self, name: str, digest: str, recipe: Recipe) -> None:
        """The blend is in use here under ``name``: known from now on, and soon to all."""
        is_new = name not in self._known
        known = self._keep(name, digest, recipe, self._clock())
        if self._clock() < known.write_at:
            return
        known.write_at = self._clock() + min(_WRITE_PERIOD_S, self._keep_s / 4)
        task = asyncio.create_task(self._write(known), name=f"remember {name}")
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        if is_new:
            await asyncio.wait({task}, timeout=_WRITE_S)

    async def _write(self, known: _Known) -> None:
        try:
            await self._registry.remember(known.digest, known.recipe)
        except AmalgamError as error:
            known.write_at = self._clock() + _RETRY_S
            logger.warning("blend_name_unwritten digest=%s reason=%s", known.digest[:12], error)

    async def learn(self, name: str) -> bool:
        """Whether ``name`` is known, once the registry was asked where it was not; away, it knows nothing."""
        if name not in self._known and len(self._asked) < _ASKED_AT_ONCE:
            self._asked.add(name)
            await self._look()
        return name in self._known

    async def _read(self) -> None:
        asked, self._asked = self._asked, set()
        for name, recipe in (await self._registry.find(asked)).items():
            self._keep(name, recipe.digest(), recipe, self._clock() + _WRITE_PERIOD_S)

    async def sweep_loop(self, period_s: float = 3600.0) -> None:
        """Forget names that nobody uses, now and every ``period_s`` seconds, for ever."""
        while True:
            try:
                await self._registry.forget_older(self._keep_s)
            except AmalgamError as error:
                logger.warning("blend_names_unswept reason=%s", error)
            await asyncio.sleep(period_s)

    async def close(self) -> None:
        """Wait for what is being written."""
        await asyncio.gather(*self._writing)
