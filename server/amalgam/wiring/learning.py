"""Feedback, experiments and shadows."""

import math
from dataclasses import dataclass

from amalgam.domain.clock import new_experiment_id, new_front_id
from amalgam.registry.experiments import ExperimentRegistry
from amalgam.registry.feedback import FeedbackRegistry
from amalgam.services.aliases import AliasService
from amalgam.services.answer_book import AnswerBook
from amalgam.services.audit import AuditService
from amalgam.services.evaluation_calls import Ask
from amalgam.services.experiment_counts import ExperimentCounts
from amalgam.services.experiments import ExperimentService
from amalgam.services.feedback import FeedbackService
from amalgam.services.inference import Inference
from amalgam.services.shadows import Shadows
from amalgam.services.spare_capacity import SpareCapacity
from amalgam.services.usage_ledger import UsageLedger
from amalgam.telemetry.metric_table import SHADOWS
from amalgam.wiring.parts import Parts
from amalgam.wiring.storage import Storage


@dataclass(frozen=True, slots=True)
class Learning:
    """What is learned from answers."""

    aliases: AliasService
    book: AnswerBook
    feedback: FeedbackService
    counts: ExperimentCounts
    experiments: ExperimentService
    shadows: Shadows

    @classmethod
    def open(
        cls,
        parts: Parts,
        kept: Storage,
        inference: Inference,
        aliases: AliasService,
        audit: AuditService,
        usage: UsageLedger,
        ask: Ask,
    ) -> "Learning":
        """What is not written yet is written on the way out."""
        given, metrics, clock = parts.settings.learning, parts.metrics, kept.database.clock
        rows = FeedbackRegistry(kept.database, clock)
        book = AnswerBook(
            rows,
            clock,
            given.answers_keep_hours,
            given.feedback_keep_days,
            aliases_only=given.answers_of == "aliases",
            metrics=metrics,
        )
        registry = ExperimentRegistry(kept.database, clock, kept.base.served_name, new_experiment_id)
        counts = ExperimentCounts(registry, new_front_id())
        experiments = ExperimentService(
            registry,
            aliases,
            kept.catalog,
            inference.resolve,
            counts,
            audit,
            judges_feedback=given.answers_keep_hours > 0,
            metrics=metrics,
        )
        for result in ("answered", "failed", "dropped"):
            metrics.values(SHADOWS).add((result,), 0.0)
        # Never by patience: a copy that finds no spare capacity is dropped before it takes a client's.
        spare = SpareCapacity(metrics.running, parts.settings.evaluations.evaluation_yield_above, math.inf)
        shadows = Shadows(
            kept.catalog,
            inference,
            ask,
            spare,
            counts,
            usage,
            given.shadow_concurrency,
            given.shadow_waiting,
            metrics,
        )
        parts.stack.push_async_callback(counts.close)
        parts.stack.push_async_callback(book.close)
        return cls(aliases, book, FeedbackService(rows, book, metrics), counts, experiments, shadows)
