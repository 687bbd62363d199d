"""The names of one state of the catalog in order: for pages of them, and for names near one that is unknown."""

import difflib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Final

_NEAR_NAMES: Final = 3
_CUTOFF: Final = 0.6
"""It tells how alike is near, as `difflib` has it."""
_NEIGHBOURS: Final = 8
"""So many names are compared on each side of the unknown one's place. Comparing with every name costs seconds of the
event loop where there are thousands of them, and anybody may ask for names that do not exist."""


class NameIndex:
    """Made for one snapshot. Each order is sorted when it is first needed.

    Args:
        names: of adapters with a default version, and of aliases.
        refs: of every version, ``name@number``.
    """

    def __init__(self, names: Iterable[str], refs: Iterable[str]) -> None:
        self._names = names
        self._refs = refs

    @cached_property
    def ordered(self) -> Sequence[str]:
        """The names, each once, in order."""
        return sorted(self._names)

    @cached_property
    def _mirrored(self) -> Sequence[str]:
        """Read from their ends, in order: what differs at its beginning stands together here."""
        return sorted(name[::-1] for name in self.ordered)

    @cached_property
    def _ordered_refs(self) -> Sequence[str]:
        return sorted(self._refs)

    def after(self, name: str) -> Sequence[str]:
        """The names that come after ``name``."""
        return self.ordered[bisect_right(self.ordered, name) :]

    def near(self, name: str, *also: str, is_shown: Callable[[str], bool] | None = None) -> list[str]:
        """At most three names that are like ``name``, the most alike first.

        Args:
            name: unknown.
            also: names to compare with beside those of the index.
            is_shown: whether whoever asks may know of a name of the index; None: of all.

        Up to 32 names are compared; of more than these, those that begin or end like ``name``.
        """
        mirrored = (near[::-1] for near in _around(self._mirrored, name[::-1]))
        found = [*_around(self.ordered, name), *mirrored]
        candidates = dict.fromkeys([*(found if is_shown is None else filter(is_shown, found)), *also])
        return difflib.get_close_matches(name, list(candidates), n=_NEAR_NAMES, cutoff=_CUTOFF)

    def versions_of(self, name: str) -> list[str]:
        """At most three versions of the adapter ``name``."""
        refs = self._ordered_refs
        # "A" is what follows "@".
        return list(refs[bisect_left(refs, f"{name}@") : bisect_left(refs, f"{name}A")][-_NEAR_NAMES:])


def _around(ordered: Sequence[str], name: str) -> Sequence[str]:
    place = bisect_left(ordered, name)
    return ordered[max(0, place - _NEIGHBOURS) : place + _NEIGHBOURS]
