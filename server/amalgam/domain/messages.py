"""What the server and its child processes say to each other: one JSON object a line, told apart by its ``type``.

    to the merge worker     `Wake`, `PlanQuestion`, `NeedsQuestion`, `RebuildQuestion`, `EnergyQuestion`
    from the merge worker   `WorkerNamed`, `JobNews`, `JobProgressed`, `PlanAnswer`, `NeedsAnswer`, `RebuildAnswer`,
                            `EnergyAnswer`, `Refusal`
    to the blend process    `BlendOrder`
    from the blend process  `BlendBuilt`, `Refusal`

Those to and from the template process are in `template_messages`.

A question has an ``id`` that its answer repeats. The registry is the truth about jobs; what is said of them here only
saves both sides from polling.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from amalgam.domain.diagnostics import MergeForecast
from amalgam.domain.error_report import ErrorReport
from amalgam.domain.fit import ReadingFit
from amalgam.domain.fit_forecast import ReadingNeeds
from amalgam.domain.recipe import Recipe
from amalgam.domain.template_messages import TemplateAnswer, TemplateOrder, TemplateReady
from amalgam.errors.internal import MessageUnreadable

MAX_LINE_BYTES: Final = 32 << 20
"""It bounds one message; the diagnostics of the largest recipes take some of them."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


# --- to the merge worker


class Wake(_Message):
    """A job is queued."""

    type: Literal["wake"] = "wake"


class PlanQuestion(_Message):
    """What a merge would give and take."""

    type: Literal["plan"] = "plan"
    id: int
    recipe: Recipe
    """It is completed and pinned."""
    budget_s: float
    """It bounds the seconds of computing."""


class NeedsQuestion(_Message):
    """What it takes to read prompts with the base model, in the worker and now."""

    type: Literal["needs"] = "needs"
    id: int
    budget_s: float


class RebuildQuestion(_Message):
    """Under which digest the result of a recipe would be stored today."""

    type: Literal["rebuild"] = "rebuild"
    id: int
    recipe: Recipe
    budget_s: float
    max_rank: int
    """It bounds the rank of the result."""
    reading: ReadingFit | None
    """It was fitted to these prompts."""


class EnergyQuestion(_Message):
    """How much of what the base model makes of prompts lies in the row space of adapters."""

    type: Literal["energies"] = "energies"
    id: int
    adapters: tuple[str, ...]
    """They are pinned."""
    prompts: tuple[str, ...]
    budget_s: float


# --- from the merge worker


class WorkerNamed(_Message):
    """Who the worker is, as jobs name it."""

    type: Literal["named"] = "named"
    name: str


@dataclass(frozen=True, slots=True)
class JobNews:
    """A job's row changed."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    job_id: str
    kind: str
    state: str
    timings: Mapping[str, float] = field(default_factory=dict)
    """It has the seconds by step, where the worker itself came to the result."""
    type: Literal["job"] = "job"


class JobProgressed(_Message):
    """A job is so far, in modules."""

    type: Literal["progress"] = "progress"
    job_id: str
    attempt: int
    """The job's starts are counted from 1; this is the number of one."""
    done: int
    total: int


class PlanAnswer(_Message):
    """Answers `PlanQuestion`."""

    type: Literal["planned"] = "planned"
    id: int
    forecast: MergeForecast


class NeedsAnswer(_Message):
    """Answers `NeedsQuestion`."""

    type: Literal["needs_found"] = "needs_found"
    id: int
    needs: ReadingNeeds


class RebuildAnswer(_Message):
    """Answers `RebuildQuestion`."""

    type: Literal["rebuilt"] = "rebuilt"
    id: int
    digest: str
    seconds: float


class EnergyAnswer(_Message):
    """Answers `EnergyQuestion`."""

    type: Literal["energies_found"] = "energies_found"
    id: int
    energies: tuple[Annotated[tuple[float, ...], Field(min_length=1)], ...]
    """It has those of each prompt, by adapter."""


# --- to and from the blend process


class BlendInput(_Message):
    """One pinned adapter of an order."""

    folder: str
    """The builder makes it, and leaves it as it is when it fails."""
    digest: str
    """It is the SHA-256 of them, in hex."""
    base: str
    """It is the fingerprint of its base model."""


class BlendOrder(_Message):
    """What is to be built, and where."""

    type: Literal["blend"] = "blend"
    id: int
    recipe: Recipe
    """It is completed and pinned."""
    inputs: Mapping[str, BlendInput]
    """The keys are the recipe's spellings of the adapters."""
    folder: str
    """The builder makes it, and leaves it as it is when it fails."""
    max_rank: int
    max_bytes: int
    """It bounds the weights; a blend is refused beforehand where they would be more."""


class BlendBuilt(_Message):
    """Answers `BlendOrder`."""

    type: Literal["built"] = "built"
    id: int
    size_bytes: int
    """It is the size of all files."""
    rank: int
    seconds: Mapping[str, float]
    """The steps are read, merge and write."""


class Refusal(_Message):
    """Answers any question or order with an error."""

    type: Literal["refused"] = "refused"
    id: int
    error: ErrorReport


# --- lines

WorkerQuestion = PlanQuestion | NeedsQuestion | RebuildQuestion | EnergyQuestion
Question = WorkerQuestion | BlendOrder | TemplateOrder
WorkerAnswer = PlanAnswer | NeedsAnswer | RebuildAnswer | EnergyAnswer
Answer = WorkerAnswer | BlendBuilt | Refusal | TemplateAnswer
WorkerNews = WorkerNamed | JobNews | JobProgressed
News = WorkerNews | TemplateReady
ToWorker = Wake | WorkerQuestion
FromWorker = WorkerNews | WorkerAnswer | Refusal
ToBlender = BlendOrder
FromBlender = BlendBuilt | Refusal
ToTemplates = TemplateOrder
FromTemplates = TemplateReady | TemplateAnswer
Message = ToWorker | ToBlender | ToTemplates | News | Answer


class Line:
    """Reads what one process says to another: the messages of ``kinds``, and nothing else.

    Args:
        kinds: a message, or a union of them.
    """

    def __init__(self, kinds: Any) -> None:
        # One kind needs nothing to be told apart by.
        told_apart: Any = Annotated[kinds, Field(discriminator="type")] if isinstance(kinds, UnionType) else kinds
        self._adapter: TypeAdapter[Any] = TypeAdapter(told_apart)

    def read(self, line: bytes) -> Any:
        """The message of ``line``.

        Raises:
            MessageUnreadable: it is none of ``kinds``.
        """
        try:
            return self._adapter.validate_json(line)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            raise MessageUnreadable(f"{'.'.join(map(str, first['loc'])) or 'line'}: {first['msg']}") from None


def written(message: Message) -> bytes:
    """The line of ``message``, without its end."""
    return _ANY.dump_json(message)


_ANY: Final[TypeAdapter[Message]] = TypeAdapter(Annotated[Message, Field(discriminator="type")])
TO_WORKER: Final = Line(ToWorker)
FROM_WORKER: Final = Line(FromWorker)
TO_BLENDER: Final = Line(ToBlender)
FROM_BLENDER: Final = Line(FromBlender)
TO_TEMPLATES: Final = Line(ToTemplates)
FROM_TEMPLATES: Final = Line(FromTemplates)
