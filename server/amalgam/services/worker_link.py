"""The line to the merge process: start it, wake it, ask it, hear from it, start it again when it dies.

The end of its standard input tells the worker to stop, so a server that is killed leaves no worker behind.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from amalgam.domain.diagnostics import MergeForecast
from amalgam.domain.fit import ReadingFit
from amalgam.domain.fit_forecast import ReadingNeeds
from amalgam.domain.job import JobProgress
from amalgam.domain.messages import (
    FROM_WORKER,
    Answer,
    EnergyAnswer,
    EnergyQuestion,
    JobNews,
    JobProgressed,
    NeedsAnswer,
    NeedsQuestion,
    News,
    PlanAnswer,
    PlanQuestion,
    RebuildAnswer,
    RebuildQuestion,
    Refusal,
    Wake,
    WorkerNamed,
    WorkerQuestion,
)
from amalgam.domain.recipe import Recipe
from amalgam.errors.jobs import WorkerUnavailable
from amalgam.services.background_loops import BackgroundLoops
from amalgam.services.child_link import ChildLink, ChildSpec
from amalgam.telemetry.metrics import Metrics

RESTART_PAUSE_S = 1.0
"""It lies between an end of the worker and its next start."""
STOP_S = 5.0
"""The worker has so long to end by itself when it is stopped."""
GRACE_S = 10.0
"""A question waits for at most one batch of another, and for the worker's turn on a busy processor."""


class WorkerLink:
    """One merge process, kept alive.

    Args:
        command: program and arguments.
        environment: of the process, complete.
        loops: what keeps the process alive runs in this group.
        metrics: told of messages that nobody understands.
        on_news: told of every change of a job; must not block, as the others.
        on_progress: told how far a job is.
        on_end: told the name of a worker that ended, whatever the reason.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        loops: BackgroundLoops,
        metrics: Metrics,
        *,
        on_news: Callable[[JobNews], None],
        on_progress: Callable[[str, JobProgress], None],
        on_end: Callable[[str], None],
    ) -> None:
        spec = ChildSpec("merge worker", command, environment, FROM_WORKER, RESTART_PAUSE_S, STOP_S)
        self._child = ChildLink(spec, loops, metrics, self._hear, self._ended)
        self._on_news = on_news
        self._on_progress = on_progress
        self._on_end = on_end
        self.name: str | None = None

    @property
    def alive(self) -> bool:
        """Whether the process runs right now."""
        return self._child.alive

    @property
    def pid(self) -> int | None:
        """Its process id, while it runs."""
        return self._child.pid

    @property
    def restarts(self) -> int:
        """How often it ended and was started again."""
        return self._child.restarts

    @property
    def unanswered(self) -> int:
        """How many questions wait for their answer."""
        return self._child.unanswered

    async def start(self, after: Awaitable[object] | None = None) -> None:
        """Begin to keep a worker alive, when ``after`` has ended or when it is first asked or woken."""
        await self._child.start(after)

    def _ended(self) -> None:
        name, self.name = self.name, None
        if name is not None:
            self._on_end(name)

    def _hear(self, news: News) -> None:
        if isinstance(news, WorkerNamed):
            self.name = news.name
        elif isinstance(news, JobNews):
            self._on_news(news)
        elif isinstance(news, JobProgressed):
            self._on_progress(news.job_id, JobProgress(news.attempt, news.done, news.total))

    def wake(self) -> None:
        """A job is queued. Lost while the worker starts, which looks at the queue by itself then."""
        self._child.want()
        self._child.tell(Wake())

    async def forecast(self, recipe: Recipe, budget_s: float) -> MergeForecast:
        """What a merge would give and take, during the job that the worker may be building.

        Args:
            recipe: completed and pinned.
            budget_s: seconds of computing.

        Raises:
            WorkerUnavailable: it does not run, ends meanwhile, or does not answer in time.
            ReportedError: it answered with an error.
        """
        question = PlanQuestion(id=self._child.number(), recipe=recipe, budget_s=budget_s)
        answer = await self._ask(question)
        assert isinstance(answer, PlanAnswer)
        return answer.forecast

    async def reading_needs(self) -> ReadingNeeds:
        """What it takes to read prompts with the base model, in the worker and now. Besides, as `forecast`."""
        answer = await self._ask(NeedsQuestion(id=self._child.number(), budget_s=GRACE_S))
        assert isinstance(answer, NeedsAnswer)
        return answer.needs

    async def rebuild(
        self, recipe: Recipe, max_rank: int, budget_s: float, reading: ReadingFit | None = None
    ) -> RebuildAnswer:
        """Under which digest the result of a recipe would be stored, fitted to ``reading``. Besides, as `forecast`."""
        question = RebuildQuestion(
            id=self._child.number(), recipe=recipe, max_rank=max_rank, budget_s=budget_s, reading=reading
        )
        answer = await self._ask(question)
        assert isinstance(answer, RebuildAnswer)
        return answer

    async def energies(
        self, adapters: Sequence[str], prompts: Sequence[str], budget_s: float
    ) -> Sequence[Sequence[float]]:
        """How much of what the base model makes of each prompt lies in the row space of each pinned adapter.

        Besides, as `forecast`.
        """
        question = EnergyQuestion(
            id=self._child.number(), adapters=tuple(adapters), prompts=tuple(prompts), budget_s=budget_s
        )
        answer = await self._ask(question)
        assert isinstance(answer, EnergyAnswer)
        return answer.energies

    async def _ask(self, question: WorkerQuestion) -> Answer:
        try:
            answer = await self._child.ask(question, question.budget_s + GRACE_S)
        except TimeoutError:
            raise WorkerUnavailable from None
        if answer is None:
            raise WorkerUnavailable
        if isinstance(answer, Refusal):
            raise answer.error.as_error()
        return answer

    def kill(self) -> None:
        """End a worker that hangs; another is started in its place."""
        self._child.kill()

    async def stop(self) -> None:
        """Let the worker end by itself, or end it."""
        await self._child.stop()
