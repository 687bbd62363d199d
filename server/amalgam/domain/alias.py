"""Aliases: names that mean one target, or several by weight or by content, and which of them one request gets."""

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from amalgam.domain.adapter import VersionRef
from amalgam.domain.experiment import Carried
from amalgam.domain.expression import is_expression, parse_expression
from amalgam.domain.routing import Router

MAX_TARGETS: Final = 16
MAX_WEIGHT: Final = 1_000_000
MAX_TARGET_LENGTH: Final = 1024
"""The ``model`` of a target has at most so many characters."""
MAX_CHANGES_KEPT: Final = 1000
"""The history of one alias holds so many changes; older ones are forgotten."""

Uniform = Callable[[], float]
"""It gives a number in [0, 1), each time another."""
AliasAction = Literal["set", "rollback", "delete", "experiment"]
"""``experiment`` says that the end of the experiment that it carried changed it."""
_FRACTION_BITS: Final = 53
"""A float holds so many exactly."""


class AliasTarget(BaseModel):
    """One thing that an alias means, and how often."""

    model_config = ConfigDict(frozen=True)

    model: str = Field(min_length=1, max_length=MAX_TARGET_LENGTH)
    """It is written as in a request: a version, an adapter, the base model, an expression; never another alias."""
    weight: int = Field(ge=1, le=MAX_WEIGHT)
    """Its share of the requests is this over the sum of all weights."""


class Alias(BaseModel):
    """A name for weighted targets."""

    model_config = ConfigDict(frozen=True)

    name: str
    revision: int = Field(ge=1)
    """It grows with every change and is never used again under this name, not even after a deletion."""
    targets: tuple[AliasTarget, ...] = Field(min_length=1, max_length=MAX_TARGETS)
    router: Router | None = None
    """It chooses among the targets by what a request says; None: their weights do."""
    experiment: Carried | None = None
    """The alias carries this experiment, while it runs."""
    created_at: datetime
    updated_at: datetime

    @property
    def total_weight(self) -> int:
        """The sum of all weights."""
        return sum(target.weight for target in self.targets)

    def sticky(self, user: str | None, key: str) -> str | None:
        """What always means the same target: who asks, unless an experiment assigns otherwise; None: nothing.

        Args:
            user: who asks, as the request says.
            key: stable word for the key; empty without one.
        """
        if self.experiment is None or self.experiment.assignment == "user":
            return user or None
        return (key or None) if self.experiment.assignment == "key" else None

    def unit(self, tenant: str, user: str | None, key: str) -> str | None:
        """A digest of what `sticky` says for a tenant: its outcomes are one of the experiment."""
        sticky = self.sticky(user, key)
        if sticky is None:
            return None
        return hashlib.blake2b(f"{tenant}\0{sticky}".encode(), digest_size=16).hexdigest()

    @property
    def meaning(self) -> str:
        """What it means, for people: ``sql@3``, ``90 % sql@3, 10 % sql@4``, or ``by content: sql, json; else base``."""
        if self.router is not None:
            return f"by content: {', '.join(self.router.candidates)}; else {self.router.otherwise}"
        if len(self.targets) == 1:
            return self.targets[0].model
        total = self.total_weight
        return ", ".join(f"{100 * target.weight / total:.4g} % {target.model}" for target in self.targets)


class AliasChange(BaseModel):
    """One entry of an alias' history."""

    model_config = ConfigDict(frozen=True)

    revision: int
    action: AliasAction
    targets: tuple[AliasTarget, ...]
    """The alias meant these from then on; none from a deletion on."""
    router: Router | None = None
    """It chose among the targets."""
    restores: int | None
    """A rollback brought back the targets of this revision."""
    created_at: datetime

    @property
    def origin(self) -> int:
        """The revision that its targets come from."""
        return self.revision if self.restores is None else self.restores


@dataclass(frozen=True, slots=True)
class AliasPage:
    """One page of aliases in order of name."""

    items: tuple[Alias, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class AliasHistory:
    """One page of changes, newest first."""

    items: tuple[AliasChange, ...]
    next_cursor: int | None


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """An adapter that a target cannot do without: one version of it, or whatever its default is."""

    name: str
    number: int | None


def adapters_used(targets: Iterable[AliasTarget], base_name: str) -> tuple[AdapterUse, ...]:
    """Every adapter that the targets need, the inputs of expressions among them; the base model needs none.

    Raises:
        InvalidExpression: a target that is no name and cannot be read.
    """
    names: list[str] = []
    for target in targets:
        names += parse_expression(target.model).adapters if is_expression(target.model) else [target.model]
    refs = ((name, VersionRef.parse(name)) for name in dict.fromkeys(names) if name != base_name)
    return tuple(AdapterUse(ref.name, ref.number) if ref else AdapterUse(name, None) for name, ref in refs)


def draw(alias: Alias, user: str | None, uniform: Uniform) -> AliasTarget:
    """The target of one request.

    With a ``user`` it is the same for every request of that user, on every replica, for as long as the alias stands as
    it is. When it changes, no more users move than have to: where one target's weight grows, users move to that target
    only and none between the others. This is rendezvous hashing (Thaler and Ravishankar, "Using Name-Based Mappings to
    Increase Hit Rates", 1998) with the logarithmic weights of Schindelhauer and Schomaker ("Weighted Distributed Hash
    Tables", 2005): each target gets an exponential variate of rate ``weight`` from a hash, and the smallest wins.

    Args:
        alias: what was asked for.
        user: who asks; None or empty: nobody in particular, so that chance decides.
        uniform: asked once where chance decides.
    """
    if len(alias.targets) == 1:
        return alias.targets[0]
    if user:
        return min(alias.targets, key=lambda each: -math.log(_fraction(alias.name, each.model, user)) / each.weight)
    left = uniform() * alias.total_weight
    for target in alias.targets[:-1]:
        left -= target.weight
        if left < 0:
            return target
    return alias.targets[-1]


def _fraction(alias: str, model: str, user: str) -> float:
    """A number in (0, 1] that these three always give. Neither name holds a NUL, so no two triples are one text."""
    digest = hashlib.blake2b(f"{alias}\0{model}\0{user}".encode(), digest_size=8).digest()
    return ((int.from_bytes(digest, "big") >> (64 - _FRACTION_BITS)) + 1) / (1 << _FRACTION_BITS)
