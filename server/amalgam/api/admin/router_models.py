"""Bodies and answers of aliases that choose by content, on the admin plane."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from amalgam.api.admin.kit import ID_PATTERN, NO_NUL, Body
from amalgam.domain.alias import MAX_TARGET_LENGTH
from amalgam.domain.routing import (
    LEAST_EXAMPLES,
    MAX_CANDIDATES,
    MAX_EXAMPLE_LENGTH,
    MAX_EXAMPLES,
    MAX_PROMPTS,
    Router,
    RouteReason,
    RouterSpec,
)
from amalgam.services.alias_routers import Explanation

_MODEL = r"^[^\x00]*[^\x00\s][^\x00]*$"
TargetName = Annotated[str, Field(min_length=1, max_length=MAX_TARGET_LENGTH, pattern=_MODEL)]
_Text = Annotated[str, Field(min_length=1, max_length=MAX_EXAMPLE_LENGTH, pattern=_MODEL)]
_Texts = Annotated[tuple[_Text, ...], Field(max_length=MAX_EXAMPLES)]
_MAX_TURNS = 256
_MAX_PROMPT = 100_000


class EvaluationBody(Body):
    """An evaluation whose questions are examples."""

    evaluation: str = Field(pattern=ID_PATTERN, description="its id", examples=["eval-8f14e45fceea4e6f"])
    task: str | None = Field(
        default=None, min_length=1, max_length=64, description="items of this task alone", examples=["sql"]
    )


class AdaptersBody(Body):
    """Prompts without a target, which the adapters tell apart."""

    prompts: tuple[_Text, ...] = Field(
        min_length=1,
        max_length=MAX_PROMPTS,
        description="what users say; each that one adapter knows better than the others do becomes its example",
        examples=[["How many users are there?", "Turn this into JSON: Ann, 34"]],
    )


class SignalBody(Body):
    """What a choice is made by: examples, written out, from evaluations, or found among prompts by the adapters."""

    examples: Mapping[TargetName, _Texts] = Field(
        default={},
        max_length=MAX_CANDIDATES + 1,
        description=f"texts by candidate, {LEAST_EXAMPLES} or more of each; of otherwise, texts for none",
        examples=[{"sql": ["How many users are there?", "List every order", "Which city has most users?"]}],
    )
    evaluations: Mapping[TargetName, EvaluationBody] = Field(
        default={},
        max_length=MAX_CANDIDATES + 1,
        description="evaluations by candidate, whose questions are added to its examples",
        examples=[{"sql": {"evaluation": "eval-8f14e45fceea4e6f", "task": "sql"}}],
    )
    adapters: AdaptersBody | None = Field(
        default=None, description="prompts that the candidates' adapters tell apart, by one pass of the base model each"
    )
    threshold: float | None = Field(
        default=None, ge=0, le=1, description="least score; without it, found from the examples", examples=[0.2]
    )
    margin: float | None = Field(
        default=None, ge=0, le=1, description="least distance of the highest score to the next", examples=[0.02]
    )


class RouterBody(Body):
    """Targets that are chosen by what a request says."""

    candidates: tuple[TargetName, ...] = Field(
        min_length=1,
        max_length=MAX_CANDIDATES,
        description="written as in a request: a version, an adapter (its default), an expression; no other alias",
        examples=[["sql", "json"]],
    )
    otherwise: TargetName | None = Field(
        default=None,
        description="target of what is like no candidate; the base model where it is not said",
        examples=["tiny"],
    )
    by: SignalBody
    blend: bool = Field(default=False, description="whether two close scores give a blend of both", examples=[False])

    def spec(self, base: str, examples: Mapping[str, tuple[str, ...]]) -> RouterSpec:
        """What is asked for; ``base`` is the base model's name, ``examples`` those of the body and of evaluations."""
        return RouterSpec(
            candidates=self.candidates,
            otherwise=self.otherwise or base,
            examples=examples,
            threshold=self.by.threshold,
            margin=self.by.margin,
            blend=self.blend,
        )


class RouterView(BaseModel):
    """A router as the API shows it."""

    candidates: tuple[str, ...] = Field(examples=[["sql", "json"]])
    otherwise: str = Field(examples=["tiny"])
    examples: tuple[int, ...] = Field(description="how many each candidate has", examples=[[12, 10]])
    threshold: float = Field(description="least score, 0 to 1", examples=[0.17])
    margin: float = Field(examples=[0.02])
    blend: bool
    recognised: float = Field(
        description="share of the examples that go to their candidate when each is left out of the fit", examples=[0.95]
    )
    kept_out: float = Field(
        description="share of the prompts of no task that go to no candidate when each is left out", examples=[0.9]
    )
    digest: str = Field(description="digest of everything that it was fitted with", examples=["9f2c…"])

    @classmethod
    def of(cls, router: Router) -> Self:
        """The view of ``router``."""
        return cls.model_validate(router.model_dump())


class ExplainBody(Body):
    """What a user says: ``prompt`` or ``messages``."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra={"examples": [{"prompt": "How many users are there?"}]}
    )

    prompt: str | None = Field(default=None, max_length=_MAX_PROMPT, pattern=NO_NUL)
    messages: tuple[dict[str, Any], ...] | None = Field(
        default=None, max_length=_MAX_TURNS, description="turns, as in a chat; the user's count"
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give prompt or messages, one of them")
        return self


class ExamplesView(BaseModel):
    """What a router was fitted with."""

    examples: Mapping[str, tuple[str, ...]] = Field(
        description="texts by target, as by.examples takes them; those of targets that are out of scope are left out",
        examples=[{"sql": ["How many users are there?", "List every order", "Which city has most users?"]}],
    )


class NearestView(BaseModel):
    """An example that is like what is said."""

    candidate: str = Field(examples=["sql"])
    text: str = Field(examples=["How many users are there?"])
    likeness: float = Field(description="cosine of the features, -1 to 1", examples=[0.71])


class ScoreView(BaseModel):
    """A candidate's score."""

    candidate: str = Field(examples=["sql"])
    score: float = Field(description="likeness, 0 to 1; no probability", examples=[0.64])


class ExplanationView(BaseModel):
    """How a router decides."""

    model: str = Field(description="the target", examples=["sql"])
    reason: RouteReason = Field(examples=["score"])
    scores: tuple[ScoreView, ...] = Field(description="the highest first")
    threshold: float = Field(examples=[0.17])
    margin: float = Field(examples=[0.02])
    nearest: tuple[NearestView, ...] = Field(description="the examples most like it")

    @classmethod
    def of(cls, found: Explanation) -> Self:
        """The view of ``found``."""
        return cls(
            model=found.route.model,
            reason=found.route.reason,
            scores=tuple(ScoreView(candidate=name, score=round(score, 4)) for name, score in found.route.scores),
            threshold=found.threshold,
            margin=found.margin,
            nearest=tuple(NearestView(candidate=name, text=text, likeness=like) for name, text, like in found.nearest),
        )
