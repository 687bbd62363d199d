"""Where a version comes from, as a graph: versions, and what went from one into the next."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from amalgam.domain.adapter import AdapterVersion
from amalgam.domain.serving_profile import VersionProfile

InputRole = Literal["input", "orthogonalize_against"]


@dataclass(frozen=True, slots=True)
class KnownVersion:
    """A version whose row is there; its files may be gone."""

    version: AdapterVersion
    is_deleted: bool


@dataclass(frozen=True, slots=True)
class LineageEdge:
    """One input of one merge."""

    input: str
    """It is written as ``name@number``."""
    output: str
    weight: Any
    """It is written as the recipe has it: a number, a gradient over depth, or filters; None for what was only kept
    clear of."""
    role: InputRole


@dataclass(frozen=True, slots=True)
class LineageGraph:
    """A version and everything that went into it."""

    root: str
    nodes: tuple[KnownVersion, ...]
    """They are in the order in which they are reached from the root, which is first."""
    edges: tuple[LineageEdge, ...]
    is_cut: bool
    """It tells whether there is more than was followed."""
    profiles: Mapping[int, VersionProfile] = field(default_factory=dict)
    """It maps a version's id to the newest state of its serving profile, where it ever had one."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What came of building a version again."""

    version: AdapterVersion
    digest: str
    """It is the SHA-256 of what was built now; the version's own where the two are the same bytes."""
    seconds: float
