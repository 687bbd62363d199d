"""Examples of a router that its adapters find themselves: which of them each prompt is for, asked when it is set."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from amalgam.domain.adapter import is_name
from amalgam.domain.scopes import Scopes
from amalgam.errors.requests import FieldRefused, ModelNotFound
from amalgam.routing.row_labels import MEASURED_BY, labelled
from amalgam.services.catalog import Catalog
from amalgam.services.worker_link import WorkerLink

_BUDGET_S: Final = 300.0
"""The demo model takes a third of a second of processor time for a prompt where other work is in its way."""
_AT_ONCE: Final = 1
"""The base model is in the worker's memory once."""


class PromptLabels:
    """Tells prompts apart by the row spaces of adapters.

    Args:
        catalog: what names mean.
        worker: reads the prompts with the base model, and knows the adapters' files.
    """

    def __init__(self, catalog: Catalog, worker: WorkerLink) -> None:
        self._catalog = catalog
        self._worker = worker
        self._turn = asyncio.Semaphore(_AT_ONCE)

    async def labelled(
        self, candidates: Sequence[str], prompts: Sequence[str], scopes: Scopes
    ) -> Mapping[str, Sequence[str]]:
        """The prompts by candidate, without those that are for none of them or for two.

        Raises:
            FieldRefused: a candidate is no adapter and no version.
            ModelNotFound: or there is none of that name in scope.
            WorkerUnavailable: it does not run, or does not answer in time.
            ReportedError: it answered with an error, as `PromptsUnread`.
        """
        pinned = [await self._pinned(place, name, scopes) for place, name in enumerate(candidates)]
        for place, version in enumerate(pinned):
            if version in pinned[:place]:
                raise FieldRefused(_field(place), f"means {version}, as an earlier candidate does; leave one out")
        given = list(dict.fromkeys(prompts))
        async with self._turn:
            found = await self._worker.energies(pinned, [*MEASURED_BY, *given], _BUDGET_S)
        return await asyncio.to_thread(labelled, given, candidates, found)

    async def _pinned(self, place: int, name: str, scopes: Scopes) -> str:
        """The version that a candidate means now."""
        short = self._catalog.short(name)
        if is_name(short.partition("@")[0]) and self._catalog.alias(short, scopes) is None:
            try:
                target = await self._catalog.found(lambda: self._catalog.resolve(short, scopes), must_ask=True)
            except ModelNotFound as error:
                raise error.at(_field(place)) from error
            if target.version is not None:
                return str(target.version.ref)
        reason = "has no files that prompts are told apart by; name an adapter or a version, or give examples"
        raise FieldRefused(_field(place), reason)


def _field(place: int) -> str:
    return f"router.candidates.{place}"
