"""Aliases whose target is chosen by what a request says: what a router is made of, and what it decides."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_CANDIDATES: Final = 15
"""With the target for the rest, they are as many as an alias may have."""
LEAST_EXAMPLES: Final = 3
"""Each candidate has at least so many."""
MAX_EXAMPLES: Final = 200
"""Each candidate has at most so many; all together have at most `MAX_ALL_EXAMPLES`."""
MAX_ALL_EXAMPLES: Final = 1000
MAX_PROMPTS: Final = 500
"""The adapters tell at most so many apart; each takes a pass of the base model."""
MAX_EXAMPLE_LENGTH: Final = 4000
"""It counts characters."""
_HEADER_BYTES: Final = 1024
"""A header that tells of a route is at most so long."""

RouteReason = Literal["score", "blend", "below_threshold", "within_margin", "no_text"]
"""It tells why a target was chosen: it scored highest; it is a blend of the two highest; or the rest's target, because
no score was high enough, two were too close, or nothing was said."""


class RouterSpec(BaseModel):
    """What an operator asks for."""

    model_config = ConfigDict(frozen=True)

    candidates: tuple[str, ...]
    otherwise: str
    examples: Mapping[str, tuple[str, ...]]
    """The keys are candidates, the values their texts; under the name of ``otherwise``, if it is no candidate, are
    texts that are for none."""
    threshold: float | None = None
    """It is the least score, 0 to 1; None: found by leaving out each example in turn."""
    margin: float | None = None
    """It is the least distance of the highest score to the next, 0 to 1."""
    blend: bool = False
    """It tells whether two close scores give a blend of both."""


class Router(BaseModel):
    """A fitted router, without its numbers: what an alias carries."""

    model_config = ConfigDict(frozen=True)

    digest: str
    """It is that of everything that the router was fitted with; it names its numbers in the registry."""
    candidates: tuple[str, ...]
    otherwise: str
    examples: tuple[int, ...]
    """It tells how many each candidate has."""
    threshold: float
    margin: float
    blend: bool
    recognised: float = Field(ge=0, le=1)
    """This share of the examples goes to their candidate when they are left out of the fit."""
    kept_out: float = Field(ge=0, le=1)
    """This share of the prompts of no task goes to no candidate when they are left out of the fit."""


@dataclass(frozen=True, slots=True)
class RouterNumbers:
    """What a router was fitted with, and what came of it. One digest always means the same."""

    digest: str
    examples: Mapping[str, tuple[str, ...]]
    weights: bytes
    """They are described in `amalgam.routing.linear`."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a user says in a request."""

    last: str = ""
    """It was said in the last turn that has a text."""
    earlier: str = ""
    """It was said in the turns before it, the latest of them."""


@dataclass(frozen=True, slots=True)
class Route:
    """A router's decision about one request."""

    model: str
    """It is a candidate, a blend of two, or the rest's target."""
    reason: RouteReason
    scores: tuple[tuple[str, float], ...] = ()
    """It has the scores of every candidate, the highest first."""

    def shown(self, covers: Callable[[str], bool], hidden: str) -> "Route":
        """The same with the names that whoever asks may know of."""
        scores = tuple((name, score) for name, score in self.scores if covers(name))
        return Route(self.model if covers(self.model) else hidden, self.reason, scores)

    def header(self) -> str:
        """The route as JSON in ASCII; of many scores the highest, so that it stays below `_HEADER_BYTES`."""
        for count in range(len(self.scores), -1, -1):
            scores = {name: round(score, 3) for name, score in self.scores[:count]}
            text = json.dumps({"model": self.model, "reason": self.reason, "scores": scores}, separators=(",", ":"))
            if len(text) <= _HEADER_BYTES:
                return text
        return json.dumps({"reason": self.reason}, separators=(",", ":"))


def router_digest(spec: RouterSpec, release: str) -> str:
    """What names everything that a router is fitted with.

    Args:
        spec: what is asked for.
        release: of the way in which it is fitted, the prompts of no task included.
    """
    given = {"release": release, **spec.model_dump(mode="json")}
    return hashlib.sha256(json.dumps(given, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
