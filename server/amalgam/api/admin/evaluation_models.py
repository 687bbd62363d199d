"""Bodies and answers of evaluations on the admin plane."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from amalgam.api.admin.kit import NO_NUL, Body, Page, Timestamp
from amalgam.domain.evaluation import (
    MAX_ITEMS,
    MAX_TARGETS,
    Evaluation,
    EvaluationError,
    EvaluationItem,
    EvaluationKind,
    EvaluationState,
    Measurement,
)
from amalgam.domain.evaluation_table import Cell, Comparison
from amalgam.domain.pattern import MAX_PATTERN

MetricName = Literal["exact_match", "contains", "regex", "json_valid", "json_equal", "log_likelihood"]
SweepMetricName = Literal["exact_match", "contains", "regex", "json_valid", "json_equal", "log_likelihood", "kept"]
"""`kept` comes besides: it tells whether a candidate gives the answer of the task's own adapter, and needs no
reference."""
TASK_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
MAX_LABEL: Final = 128
MODEL = Annotated[str, Field(min_length=1, max_length=1024, pattern=NO_NUL)]
MAX_TOKENS = Field(default=128, ge=1, le=2048, description="longest answer, tokens", examples=[64])


class ItemBody(Body):
    """One question: messages or a prompt, and what is wanted."""

    task: str = Field(default="all", pattern=TASK_PATTERN, description="items of one task are counted together")
    messages: tuple[dict[str, Any], ...] | None = Field(default=None, description="a chat, as in a request")
    prompt: str | None = Field(default=None, pattern=NO_NUL, description="a text to continue, instead of messages")
    reference: str | None = Field(default=None, max_length=65_536, description="what is wanted", examples=["4"])
    pattern: str | None = Field(
        default=None, max_length=MAX_PATTERN, description="what `regex` looks for in the answer", examples=["^4$"]
    )

    def item(self) -> EvaluationItem:
        """The item as the domain has it. Raises ValueError unless there is one question."""
        return EvaluationItem.model_validate(self.model_dump())


class EvaluationBody(Body):
    """Items, and who is asked."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "label": "nightly",
                    "targets": ["smollm2", "sql", "sql + 0.5*json"],
                    "metrics": ["exact_match", "log_likelihood"],
                    "items": [{"messages": [{"role": "user", "content": "2 + 2 = ?"}], "reference": "4"}],
                }
            ]
        },
    )

    label: str = Field(default="", max_length=MAX_LABEL, pattern=NO_NUL, examples=["nightly"])
    targets: tuple[MODEL, ...] = Field(min_length=1, max_length=MAX_TARGETS)
    metrics: tuple[MetricName, ...] = Field(min_length=1, max_length=8)
    items: tuple[ItemBody, ...] = Field(min_length=1, max_length=MAX_ITEMS)
    max_tokens: int = MAX_TOKENS


class TargetView(BaseModel):
    """One of those who are asked."""

    model: str = Field(description="the model as it was asked for", examples=["sql"])
    pinned: str = Field(description="what is asked: exact versions, or a weighted alias", examples=["sql@3"])
    meaning: str = Field(description="what a weighted alias meant, else pinned", examples=["sql@3"])


class EvaluationView(BaseModel):
    """An evaluation as the API shows it."""

    id: str = Field(examples=["eval-8f14e45fceea4e6f9d5c1f6a2b7c3d90"])
    kind: EvaluationKind = Field(examples=["evaluation"])
    label: str = Field(examples=["nightly"])
    state: EvaluationState = Field(examples=["running"])
    done: int = Field(description="measurements made: one is one item asked of one target", examples=[120])
    total: int = Field(examples=[600])
    targets: tuple[TargetView, ...]
    metrics: tuple[str, ...] = Field(examples=[["exact_match"]])
    tasks: dict[str, int] = Field(description="items of each task", examples=[{"all": 200}])
    max_tokens: int = Field(examples=[128])
    items_digest: str = Field(description="equal: the same items", examples=["5b0c…"])
    error: EvaluationError | None = Field(description="why it failed", examples=[None])
    created_at: Timestamp
    updated_at: Timestamp

    @classmethod
    def of(cls, evaluation: Evaluation) -> "EvaluationView":
        """The view of ``evaluation``."""
        return cls.model_validate(evaluation.model_dump(exclude={"search"}))


class CellView(BaseModel):
    """One mean."""

    target: int = Field(description="place among the targets, from 0", examples=[1])
    model: str = Field(examples=["sql"])
    task: str = Field(examples=["all"])
    metric: str = Field(examples=["exact_match"])
    mean: float = Field(examples=[0.87])
    count: int = Field(description="items that it is the mean of", examples=[200])


class RefusedView(BaseModel):
    """Items that ended without values."""

    target: int = Field(examples=[1])
    code: str = Field(description="code of the error", examples=["invalid_request"])
    count: int = Field(examples=[2])


class EvaluationReportView(BaseModel):
    """An evaluation with what it came to so far."""

    evaluation: EvaluationView
    table: tuple[CellView, ...]
    refused: tuple[RefusedView, ...]

    @classmethod
    def of(
        cls, evaluation: Evaluation, cells: Iterable[Cell], refused: Mapping[tuple[int, str], int]
    ) -> "EvaluationReportView":
        """The view of a table."""
        return cls(
            evaluation=EvaluationView.of(evaluation),
            table=cell_views(evaluation, cells),
            refused=tuple(
                RefusedView(target=target, code=code, count=count) for (target, code), count in sorted(refused.items())
            ),
        )


class EvaluationPageView(Page[EvaluationView]):
    """One page of evaluations, newest first."""


class MeasurementView(BaseModel):
    """One item asked of one target."""

    target: int = Field(examples=[1])
    model: str = Field(examples=["sql"])
    item: int = Field(description="place among the items, from 0", examples=[17])
    served: str = Field(description="the version or blend that answered; empty where none did", examples=["sql@3"])
    answer: str | None = Field(
        description="text of the answer; null where only log_likelihood was asked for", examples=["4"]
    )
    values: dict[str, float] = Field(description="one value a metric that applies", examples=[{"exact_match": 1.0}])
    error_code: str | None = Field(examples=[None])

    @classmethod
    def of(cls, evaluation: Evaluation, one: Measurement) -> "MeasurementView":
        """The view of ``one``."""
        return cls(model=evaluation.targets[one.target].model, **one.model_dump())


class ResultPageView(Page[MeasurementView]):
    """One page of measurements, in order of target and item."""


class ItemView(BaseModel):
    """One question, as it was sent."""

    item: int = Field(description="its place; measurements name it", examples=[0])
    task: str = Field(examples=["all"])
    messages: tuple[Mapping[str, Any], ...] | None = Field(description="the chat; null where a text is to be continued")
    prompt: str | None = Field(description="the text to continue; null of a chat", examples=["2 + 2 ="])
    reference: str | None = Field(examples=["4"])
    pattern: str | None = Field(examples=["^4$"])

    @classmethod
    def of(cls, place: int, item: EvaluationItem) -> "ItemView":
        """The view of ``item``."""
        return cls(item=place, **item.model_dump())


class ItemPageView(Page[ItemView]):
    """One page of questions, in order."""


class ComparisonView(BaseModel):
    """Two targets on one task by one metric."""

    task: str = Field(examples=["all"])
    metric: str = Field(examples=["exact_match"])
    baseline: float = Field(description="mean of the baseline", examples=[0.81])
    candidate: float = Field(examples=[0.87])
    difference: float = Field(examples=[0.06])
    count: int = Field(description="items that both have a value for", examples=[200])
    wins: int = Field(description="items on which the candidate is better", examples=[15])
    losses: int = Field(examples=[3])
    p_value: float = Field(description="two-sided sign test over wins and losses", examples=[0.0075])


class ComparisonPageView(BaseModel):
    """A comparison, by task and metric."""

    data: tuple[ComparisonView, ...]

    @classmethod
    def of(cls, rows: Iterable[Comparison]) -> "ComparisonPageView":
        """The view of ``rows``."""
        return cls(data=tuple(ComparisonView.model_validate(row, from_attributes=True) for row in rows))


class EvaluationDeletedView(BaseModel):
    """What was forgotten."""

    deleted: str = Field(examples=["eval-8f14e45fceea4e6f9d5c1f6a2b7c3d90"])


def cell_views(evaluation: Evaluation, cells: Iterable[Cell]) -> tuple[CellView, ...]:
    """The views of ``cells``."""
    return tuple(
        CellView(
            target=cell.target,
            model=evaluation.targets[cell.target].model,
            task=cell.task,
            metric=cell.metric,
            mean=cell.mean,
            count=cell.count,
        )
        for cell in cells
    )
