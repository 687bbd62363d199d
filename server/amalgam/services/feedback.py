"""What clients say about answers that they got, and what comes of it for each target of an alias."""

from collections.abc import Sequence

from amalgam.domain.feedback import Feedback, OutcomeSum
from amalgam.errors.learning import AnswerNotFound, FeedbackOff
from amalgam.registry.feedback import FeedbackRegistry
from amalgam.services.answer_book import AnswerBook
from amalgam.telemetry import metric_table as table
from amalgam.telemetry.metrics import Metrics
from amalgam.telemetry.no_metrics import NO_METRICS


class FeedbackService:
    """Takes feedback and adds it up.

    Args:
        rows: where it is written.
        book: the answers that may be judged.
        metrics: told of what was said.
    """

    def __init__(self, rows: FeedbackRegistry, book: AnswerBook, metrics: Metrics = NO_METRICS) -> None:
        self._rows = rows
        self._book = book
        self._metrics = metrics

    async def give(self, tenant: str, key_id: str, answer_id: str, name: str, value: float) -> tuple[Feedback, bool]:
        """Take what a key says about an answer that it got; also whether it is new.

        Raises:
            FeedbackOff: no answers are kept.
            AnswerNotFound: none of that id.
            FeedbackDiffers, TooMuchFeedback: what was said before.
        """
        book = self._book
        if not book.keep_hours:
            raise FeedbackOff
        answer = await book.find(tenant, key_id, answer_id)
        if answer is None:
            raise AnswerNotFound(answer_id, book.keep_hours, aliases_only=book.aliases_only)
        said, is_new = await self._rows.add(answer, name, value)
        self._metrics.values(table.FEEDBACK).add(("taken" if is_new else "repeated",))
        return said, is_new

    async def sums(self, alias: str) -> Sequence[OutcomeSum]:
        """What was said about an alias' answers, by target, version and name."""
        return await self._rows.sums(alias)
