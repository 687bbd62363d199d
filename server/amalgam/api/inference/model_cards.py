"""What `/v1/models` shows: one card a name, and pages of them."""

import asyncio
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Final

from amalgam.domain.alias import Alias
from amalgam.domain.scopes import EVERYTHING, Scopes
from amalgam.services.catalog import Catalog, Snapshot, Target
from amalgam.services.name_index import NameIndex

PAGE: Final = 10_000
"""OpenAI's clients do not ask for a second page of models, so one page is all that they see."""


def model_card(target: Target, served_name: str, created: int) -> dict[str, Any]:
    """One entry of ``/v1/models``: ``root`` is the exact version or the blend, ``parent`` the base model."""
    card: dict[str, Any] = {"id": target.engine_name, "object": "model", "created": created, "owned_by": "amalgam"}
    if target.version is None:
        return card | {"root": served_name, "parent": None, "permission": []}
    return card | {"root": str(target.version.ref), "parent": served_name, "permission": []}


def alias_card(alias: Alias, served_name: str) -> dict[str, Any]:
    """The entry of an alias: ``root`` is what it means, targets and shares."""
    created = int(alias.created_at.timestamp())
    card = {"id": alias.name, "object": "model", "created": created, "owned_by": "amalgam"}
    return card | {"root": alias.meaning, "parent": served_name, "permission": []}


def blend_card(asked: str, target: Target, served_name: str, created: int) -> dict[str, Any]:
    """The entry of what an expression describes; ``recipe`` says it with exact versions."""
    card = model_card(Target(asked, target.version), served_name, created)
    return card | {"root": target.engine_name, "parent": served_name, "recipe": target.recipe}


class ModelPages:
    """Writes pages off the event loop, which has tokens to send meanwhile, one at a time, and keeps the last one.

    A page of ten thousand names takes a tenth of a second to write, and every client asks for the same one.
    """

    def __init__(self, started_at: int) -> None:
        """``started_at``: Unix seconds, the base model's ``created``."""
        self._started_at = started_at
        self._turn = asyncio.Lock()
        self._kept_of = Snapshot()
        self._kept_key: tuple[int, str | None, tuple[str, ...]] = (0, None, ())
        self._kept = b""

    async def page(self, catalog: Catalog, limit: int, after: str | None, scopes: Scopes = EVERYTHING) -> bytes:
        """A page as JSON: the base model first, then names in order; from behind ``after`` where it is given.

        Args:
            catalog: what there is.
            limit: most names.
            after: the last name of the page before.
            scopes: what whoever asks may know of.
        """
        async with self._turn:
            snapshot, index, asked = catalog.snapshot, catalog.names, (limit, after, scopes.models)
            if self._kept_of is not snapshot or self._kept_key != asked:
                shown = _Shown(catalog, snapshot, index, scopes)
                self._kept = await asyncio.to_thread(self._written, shown, limit, after)
                self._kept_of, self._kept_key = snapshot, asked
            return self._kept

    def _written(self, shown: "_Shown", limit: int, after: str | None) -> bytes:
        base = shown.base
        names = shown.index.ordered if after is None or after == base else shown.index.after(after)
        if not shown.scopes.has_every_name:
            names = [name for name in names if shown.scopes.name(name)]
        cards = shown.cards(names)
        has_base = after is None and shown.scopes.base
        if has_base:
            cards = chain([model_card(Target(base, None), base, self._started_at)], cards)
        return _page(islice(cards, limit), has_more=len(names) > limit - has_base)


@dataclass(frozen=True, slots=True)
class _Shown:
    """One state of the catalog, and what of it may be known."""

    catalog: Catalog
    snapshot: Snapshot
    index: NameIndex
    scopes: Scopes

    @property
    def base(self) -> str:
        return self.catalog.base.served_name

    def cards(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        for name in names:
            if (alias := self.snapshot.aliases.get(name)) is not None:
                yield alias_card(self.catalog.shown(alias, self.scopes), self.base)
            else:
                version = self.snapshot.defaults[name]
                yield model_card(Target(name, version), self.base, int(version.created_at.timestamp()))


def _page(cards: Iterable[Mapping[str, Any]], *, has_more: bool) -> bytes:
    # Card by card: one call for all would keep the interpreter, and so the event loop, until it is done.
    data = ",".join(json.dumps(card, separators=(",", ":")) for card in cards)
    return f'{{"object":"list","data":[{data}],"has_more":{json.dumps(has_more)}}}'.encode()
