"""The part of a merge's body that asks for it to be fitted to its inputs' prompts."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from amalgam.api.admin.evaluation_models import ItemBody, MetricName
from amalgam.api.admin.kit import ID_PATTERN, NO_NUL, Body
from amalgam.api.admin.probe_models import Prompt
from amalgam.domain.fit import MAX_CANDIDATES, FitMethod
from amalgam.domain.recipe import MAX_INPUTS
from amalgam.domain.skill_probe import MAX_PROMPTS
from amalgam.domain.skill_probe import MAX_TOKENS as PROBE_TOKENS

_Input = Annotated[str, Field(min_length=1, max_length=256, pattern=NO_NUL)]
_MAX_ITEMS = 200
"""One input has at most so many."""


class FitBody(Body):
    """Prompts of every input, by which the merge is made to keep what each input does."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {"prompts": {"sql": ["How many users are there?"], "json": ["Text: … Shape: {…}"]}},
                {
                    "by": "items",
                    "items": {
                        "sql": [{"prompt": "…", "reference": "SELECT 1"}],
                        "json": [{"prompt": "…", "reference": "{}"}],
                    },
                    "metrics": {"json": "json_equal"},
                },
            ]
        },
    )

    method: FitMethod | None = Field(
        default=None,
        description="`iteris`: the worker reads the prompts with the base model, and fits each input to what layers "
        "are given there; `weights`: a search for weights, on the engine. Left out: `iteris`, where the server has the "
        "base model's files and neither candidates nor metrics are given",
    )
    by: Literal["kept", "items"] = Field(
        default="kept",
        description="`kept`: by the inputs' own answers, without labels; `items`: by answers that are wanted",
    )
    prompts: dict[_Input, Annotated[tuple[Prompt, ...], Field(min_length=1, max_length=MAX_PROMPTS)]] = Field(
        default={}, max_length=MAX_INPUTS, description="input -> what it is asked; of `kept`"
    )
    items: dict[_Input, Annotated[tuple[ItemBody, ...], Field(min_length=1, max_length=_MAX_ITEMS)]] = Field(
        default={}, max_length=MAX_INPUTS, description="input -> questions with what is wanted; of `items`"
    )
    evaluation: str | None = Field(
        default=None,
        pattern=ID_PATTERN,
        description="evaluation whose first items are taken, of each task that is named like an input",
    )
    metrics: dict[_Input, MetricName] = Field(
        default={},
        max_length=MAX_INPUTS,
        description="metric of each input, with `items` and `weights`; left out: exact_match",
    )
    candidates: int = Field(default=48, ge=1, le=MAX_CANDIDATES, description="most candidates that `weights` tries")
    budget_s: float = Field(
        default=300.0, gt=0, le=86_400, allow_inf_nan=False, description="longest search or reading, seconds"
    )
    seed: int = Field(
        default=0, ge=0, lt=1 << 53, description="number that draws: the same prompts and the same seed try the same"
    )
    max_tokens: int = Field(default=64, ge=1, le=PROBE_TOKENS, description="longest answer, tokens", examples=[64])

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.by == "kept" and (self.items or self.metrics):
            raise ValueError('items and metrics go with "by": "items"; of `kept` give prompts')
        if self.by == "items" and self.prompts:
            raise ValueError('prompts go with "by": "kept"; of `items` give items')
        if not (self.prompts or self.items) and self.evaluation is None:
            raise ValueError("give prompts or items of every input, or an evaluation")
        if self.method == "iteris" and self.of_search:
            raise ValueError(f'{self.of_search[0]} goes with "method": "weights"; of `iteris` leave it out')
        return self

    @property
    def of_search(self) -> list[str]:
        """Fields that are given and that only a search for weights has."""
        return [name for name in ("candidates", "metrics") if name in self.model_fields_set]
