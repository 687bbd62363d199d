"""What `/v1/models` shows: one card a name, and pages of them."""

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any, Final

from amalgam.domain.alias import Alias
from amalgam.domain.catalog_rows import NameRow
from amalgam.domain.scopes import EVERYTHING, Scopes
from amalgam.services.catalog import Catalog, Target
from amalgam.services.name_index import NameIndex
from amalgam.services.snapshot import Snapshot

PAGE: Final = 10_000
"""OpenAI's clients do not ask for a second page of models, so one page is all that they see."""
PART: Final = 1_000
"""It is the page of a registry that holds more than is kept in memory, where no page is all of it anyhow."""


def model_card(target: Target, served_name: str, created: int) -> dict[str, Any]:
    """One entry of ``/v1/models``: ``root`` is the exact version or the blend, ``parent`` the base model."""
    card: dict[str, Any] = {"id": target.engine_name, "object": "model", "created": created, "owned_by": "amalgam"}
    if target.version is None:
        return card | {"root": served_name, "parent": None, "permission": []}
    return _adapter_card(target.engine_name, str(target.version.ref), served_name, created)


def _adapter_card(asked: str, ref: str, served_name: str, created: int) -> dict[str, Any]:
    card = {"id": asked, "object": "model", "created": created, "owned_by": "amalgam"}
    return card | {"root": ref, "parent": served_name, "permission": []}


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
        self._kept_key: tuple[int | None, str | None, tuple[str, ...]] = (0, None, ())
        self._kept = b""

    async def page(self, catalog: Catalog, limit: int | None, after: str | None, scopes: Scopes = EVERYTHING) -> bytes:
        """A page as JSON: the base model first, then names in order; from behind ``after`` where it is given.

        Args:
            catalog: what there is.
            limit: most names; None: all, up to `PAGE`, where all are in memory, else `PART`.
            after: the last name of the page before.
            scopes: what whoever asks may know of.
        """
        async with self._turn:
            snapshot, asked = catalog.snapshot, (limit, after, scopes.models)
            if self._kept_of is not snapshot or self._kept_key != asked:
                most = limit or (PAGE if snapshot.is_whole else PART)
                behind = None if after == catalog.base.served_name else after
                found = partial(_all_names, catalog.names, behind)
                rows: Mapping[str, NameRow] = {}
                if not snapshot.is_whole:
                    rows = {row.name: row for row in await catalog.page(behind, most + 1, scopes)}
                    found = partial(_some_names, rows, snapshot.aliases, behind)
                shown = _Shown(catalog, snapshot, rows, scopes)
                has_base = after is None and scopes.base
                self._kept = await asyncio.to_thread(self._written, shown, found, most, has_base=has_base)
                self._kept_of, self._kept_key = snapshot, asked
            return self._kept

    def _written(self, shown: "_Shown", found: Callable[[], Sequence[str]], most: int, *, has_base: bool) -> bytes:
        names = found()
        if not shown.scopes.has_every_name:
            names = [name for name in names if shown.scopes.name(name)]
        cards = shown.cards(names)
        if has_base:
            cards = chain([model_card(Target(shown.base, None), shown.base, self._started_at)], cards)
        return _page(islice(cards, most), has_more=len(names) > most - has_base)


def _all_names(index: NameIndex, behind: str | None) -> Sequence[str]:
    return index.ordered if behind is None else index.after(behind)


def _some_names(rows: Iterable[str], aliases: Iterable[str], behind: str | None) -> Sequence[str]:
    """Adapters of a page, and all aliases behind its begin: those beyond its end are cut off with what is too much."""
    return sorted({*rows, *(name for name in aliases if behind is None or name > behind)})


@dataclass(frozen=True, slots=True)
class _Shown:
    """One state of the catalog, and what of it may be known."""

    catalog: Catalog
    snapshot: Snapshot
    rows: Mapping[str, NameRow]
    """It has the adapters that are not in the snapshot."""
    scopes: Scopes

    @property
    def base(self) -> str:
        return self.catalog.base.served_name

    def cards(self, names: Iterable[str]) -> Iterator[dict[str, Any]]:
        for name in names:
            if (alias := self.snapshot.aliases.get(name)) is not None:
                yield alias_card(self.catalog.shown(alias, self.scopes), self.base)
            elif (row := self.rows.get(name)) is not None:
                yield _adapter_card(name, f"{name}@{row.number}", self.base, int(row.created_at.timestamp()))
            else:
                version = self.snapshot.defaults[name]
                yield _adapter_card(name, str(version.ref), self.base, int(version.created_at.timestamp()))


def _page(cards: Iterable[Mapping[str, Any]], *, has_more: bool) -> bytes:
    # Card by card: one call for all would keep the interpreter, and so the event loop, until it is done.
    data = ",".join(json.dumps(card, separators=(",", ":")) for card in cards)
    return f'{{"object":"list","data":[{data}],"has_more":{json.dumps(has_more)}}}'.encode()
