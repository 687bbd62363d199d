"""Routers: fitted of examples, and asked which target a request is for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from amalgam.domain.routing import Route, Router, RouterNumbers, RouterSpec, Said, router_digest
from amalgam.routing.features import vector
from amalgam.routing.linear import Fit, LinearModel, Scores, fit
from amalgam.routing.neutral_prompts import NEUTRAL_PROMPTS

RELEASE: Final = "3"
"""It changes with features, fit and prompts of no task, so that a digest never means two models."""
_KEPT_OUT: Final = 0.87
"""A threshold keeps this share of the prompts of no task away from all candidates."""
_MARGIN: Final = 0.02
_STEPS: Final = 4
"""Weights of a blend are multiples of one over this: few different blends, which stay built."""


@dataclass(frozen=True, slots=True)
class FittedRouter:
    """A router with its numbers."""

    router: Router
    model: LinearModel

    @classmethod
    def of(cls, router: Router, numbers: RouterNumbers) -> "FittedRouter":
        """Make it of what the registry keeps."""
        return cls(router, LinearModel.from_bytes(numbers.weights))

    def route(self, said: Said) -> Route:
        """The target of what is said; a request without text, and what is like no candidate, go to the rest's."""
        if not (said.last.strip() or said.earlier.strip()):
            return Route(self.router.otherwise, "no_text")
        return decided(self.router, self.model.scores(said))


def decided(router: Router, scores: Scores) -> Route:
    """What scores come to; of equal ones the candidate that was named first counts as the higher."""
    order = np.argsort(-scores, kind="stable")
    ranked = tuple((router.candidates[place], float(scores[place])) for place in order)
    (best, high), rest = ranked[0], ranked[1:]
    if high < router.threshold:
        return Route(router.otherwise, "below_threshold", ranked)
    if rest and high - rest[0][1] < router.margin:
        if router.blend and rest[0][1] >= router.threshold:
            return Route(f"0.5*{best} + 0.5*{rest[0][0]}", "blend", ranked)
        return Route(router.otherwise, "within_margin", ranked)
    if router.blend and rest and rest[0][1] >= router.threshold:
        share = _share(high - router.threshold, rest[0][1] - router.threshold)
        if share < 1:
            return Route(f"{share:g}*{best} + {1 - share:g}*{rest[0][0]}", "blend", ranked)
    return Route(best, "score", ranked)


def _share(high: float, low: float) -> float:
    """The weight of the higher of two scores, by how far each is above the threshold."""
    total = high + low
    return round(_STEPS * high / total) / _STEPS if total > 0 else 0.5


def fit_router(spec: RouterSpec) -> tuple[Router, RouterNumbers]:
    """Fit what is asked for. Takes processor time, two seconds for a thousand examples; the same spec gives the same.

    Where the spec has no threshold, it is the one that keeps `_KEPT_OUT` of the prompts of no task away.
    """
    texts, labels = _fitted_with(spec)
    found = fit(texts, labels, len(spec.candidates))
    label = np.array(labels)
    highest = found.left_out.max(axis=1)
    threshold = float(np.quantile(highest[label < 0], _KEPT_OUT)) if spec.threshold is None else spec.threshold
    digest = router_digest(spec, RELEASE)
    router = Router(
        digest=digest,
        candidates=spec.candidates,
        otherwise=spec.otherwise,
        examples=tuple(len(spec.examples[one]) for one in spec.candidates),
        threshold=round(threshold, 4),
        margin=_MARGIN if spec.margin is None else spec.margin,
        blend=spec.blend,
        recognised=_recognised(found, label, threshold),
        kept_out=round(float(np.mean(highest[label < 0] < threshold)), 4),
    )
    return router, RouterNumbers(digest, dict(spec.examples), found.model.to_bytes())


def _fitted_with(spec: RouterSpec) -> tuple[list[str], list[int]]:
    """Every text with the number of its candidate."""
    texts: list[str] = []
    labels: list[int] = []
    for number, candidate in enumerate(spec.candidates):
        texts += spec.examples[candidate]
        labels += [number] * len(spec.examples[candidate])
    others = (*NEUTRAL_PROMPTS, *(() if spec.otherwise in spec.candidates else spec.examples.get(spec.otherwise, ())))
    return [*texts, *others], [*labels, *[-1] * len(others)]


def _recognised(found: Fit, label: npt.NDArray[np.int64], threshold: float) -> float:
    own = label >= 0
    is_right = found.left_out[own].argmax(axis=1) == label[own]
    return round(float(np.mean(is_right & (found.left_out[own].max(axis=1) >= threshold))), 4)


def nearest(numbers: RouterNumbers, said: Said, count: int) -> Sequence[tuple[str, str, float]]:
    """The examples most like what is said: name, text and cosine, the most alike first."""
    pairs = [(name, text) for name, texts in sorted(numbers.examples.items()) for text in texts]
    asked = vector(said.last, said.earlier)
    likeness = np.array([float(vector(text) @ asked) for _, text in pairs])
    order = np.argsort(-likeness, kind="stable")[:count]
    return [(*pairs[place], round(float(likeness[place]), 4)) for place in order]
