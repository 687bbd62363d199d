"""What a key may ask for: patterns of names, and whether it may describe blends of them."""

import re
from functools import cached_property, lru_cache
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from amalgam.domain.adapter import VersionRef

BASE: Final = "base"
"""In a scope it means the base model, by whatever name it is served. No pattern but this word and ``*`` means it."""
_ALL: Final = "*"
MAX_PATTERNS: Final = 256
BlendScope = Literal["none", "own", "any"]
"""``none`` allows no blends; ``own``: those it describes itself; ``any``: by name also those that others' requests gave
rise to. Of either kind only such are meant whose every input is in scope."""

NamePattern = Annotated[
    str,
    Field(
        max_length=160,
        pattern=r"^[A-Za-z0-9._*?-]{1,128}(@[0-9*?]{1,9})?$",
        description="name of adapters or aliases, with * for any letters and ? for one; name@3: that version alone; "
        "base: the base model",
        examples=["acme.*"],
    ),
]


class Scopes(BaseModel):
    """What a key may ask for, and so all that it may come to know of. Without changes: everything."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[NamePattern, ...] = Field(default=(_ALL,), max_length=MAX_PATTERNS)
    blends: BlendScope = "any"

    @property
    def is_everything(self) -> bool:
        """Whether nothing is out of scope."""
        return _ALL in self.models and self.blends == "any"

    @property
    def has_every_name(self) -> bool:
        """Whether every adapter, every alias and the base model are in scope."""
        return _ALL in self.models

    @property
    def name_patterns(self) -> tuple[str, ...]:
        """Those of names, of which one has to match."""
        return tuple(sorted({one for one in self.models if "@" not in one and one != BASE}))

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[str] | None, re.Pattern[str] | None]:
        """The patterns of names, and those of versions; None where there is no such pattern."""
        return _compiled(self.name_patterns), _compiled(tuple(sorted({one for one in self.models if "@" in one})))

    @property
    def base(self) -> bool:
        """Whether the base model is in scope."""
        return BASE in self.models or _ALL in self.models

    def name(self, name: str) -> bool:
        """Whether the adapter or alias ``name`` is in scope, an adapter with all its versions."""
        names, _ = self._patterns
        return names is not None and names.fullmatch(name) is not None

    def version(self, ref: VersionRef | str) -> bool:
        """Whether the exact version is in scope: by its name, or by a pattern of its own."""
        text = str(ref)
        _, versions = self._patterns
        return self.name(text.partition("@")[0]) or (versions is not None and versions.fullmatch(text) is not None)

    def asked(self, text: str) -> bool:
        """Whether a bare name or ``name@3`` is in scope."""
        return self.version(text) if "@" in text else self.name(text)


EVERYTHING: Final = Scopes()


@lru_cache(maxsize=4096)
def _compiled(patterns: tuple[str, ...]) -> re.Pattern[str] | None:
    """One expression for all ``patterns``. Remembered by their text: keys of one tenant often share it."""
    return re.compile("|".join(map(pattern_expression, patterns))) if patterns else None


def pattern_expression(pattern: str) -> str:
    """The pattern as an expression that never goes back: what stands between stars is found at its first place.

    A name has neither star nor question mark, so that nothing else needs to be escaped twice.
    """
    first, *others = re.sub(r"\*+", _ALL, pattern).split(_ALL)
    if not others:
        return _literal(first)
    *middle, last = others
    # Possessive groups: no way back into what has been found, so no name takes longer than its length.
    found = "".join(f"(?>.*?{_literal(piece)})" for piece in middle)
    return f"{_literal(first)}{found}.*{_literal(last)}"


def _literal(text: str) -> str:
    return re.escape(text).replace(r"\?", ".")
