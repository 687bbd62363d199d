"""Names in memory where the registry holds more than a server keeps: those that were asked for last."""

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from amalgam.domain.adapter import AdapterVersion
from amalgam.domain.catalog_rows import NameAnswers, ServedVersion

_MOST_RECIPES: Final = 4096
"""For so many blends it is known whether they were merged as well."""


class HotNames:
    """What names mean, least lately asked for first; nothing in it outlives a change of what it says.

    Names that mean nothing are not kept: each is one look through an index, and what another server registered a
    moment ago is found by the next.

    Args:
        most: names kept, ``sql`` and ``sql@3`` counting as two.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: OrderedDict[str, ServedVersion] = OrderedDict()
        self._of_adapter: dict[str, set[str]] = {}
        self._merged: OrderedDict[str, Sequence[AdapterVersion]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    @property
    def adapters(self) -> Collection[str]:
        """Those of which a name is in memory."""
        return self._of_adapter.keys()

    @property
    def versions(self) -> Iterator[AdapterVersion]:
        """Those in memory; one may come twice."""
        return (known.version for known in self._known.values())

    def get(self, name: str) -> ServedVersion | None:
        """What ``name`` means, if that is in memory; it stays there longer for having been asked for."""
        found = self._known.get(name)
        if found is not None:
            self._known.move_to_end(name)
        return found

    def peek(self, name: str) -> ServedVersion | None:
        """The same, and it stays no longer for it."""
        return self._known.get(name)

    def merged(self, recipe: str) -> Sequence[AdapterVersion] | None:
        """The versions that were merged by a recipe of that digest; None where that is not in memory."""
        return self._merged.get(recipe)

    def keep(self, answers: NameAnswers) -> None:
        """Take in what the registry said."""
        for name, served in answers.found.items():
            self._put(name, served)
            # The engine's name: what else is asked of the version while its request goes on.
            self._put(str(served.version.ref), served)
        self._merged.update(answers.merged)
        while len(self._merged) > _MOST_RECIPES:
            self._merged.popitem(last=False)

    def forget(self, names: Collection[str], recipes: Collection[str]) -> None:
        """Those adapters changed, with all their versions, and versions of those recipes came or went."""
        for name in names:
            for key in self._of_adapter.pop(name, ()):
                del self._known[key]
        for recipe in recipes:
            self._merged.pop(recipe, None)

    def _put(self, key: str, served: ServedVersion) -> None:
        self._known[key] = served
        self._known.move_to_end(key)
        self._of_adapter.setdefault(served.version.name, set()).add(key)
        while len(self._known) > self._most:
            oldest, gone = self._known.popitem(last=False)
            keys = self._of_adapter[gone.version.name]
            keys.discard(oldest)
            if not keys:
                del self._of_adapter[gone.version.name]
