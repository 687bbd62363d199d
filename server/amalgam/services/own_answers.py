"""The answers of tasks' own adapters, which candidates of a sweep are to keep: asked once, read by every candidate."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

from amalgam.domain.answer_metrics import KEPT, KEPT_LIKELIHOOD
from amalgam.domain.evaluation import Evaluation, EvaluationItem
from amalgam.domain.kept import input_kept
from amalgam.domain.search import SweepPlan
from amalgam.services.skill_probes import Hold, OwnAnswer, SkillProbes


@dataclass(slots=True)
class _Known:
    """What is known of one sweep."""

    sweep_id: str = ""
    adapters: Mapping[str, int] = field(default_factory=dict)
    """It maps a task to the target that is its own adapter."""
    answers: dict[int, OwnAnswer] = field(default_factory=dict)
    """They are by item."""


class OwnAnswers:
    """Keeps the answers of one sweep, the one that is measured; the next one takes their place.

    Args:
        probes: asks and reads.
        hold: keeps a model in the engine for one call.
    """

    def __init__(self, probes: SkillProbes, hold: Callable[[str], Hold]) -> None:
        self._probes = probes
        self._hold = hold
        self._known = _Known()

    async def of(self, sweep: Evaluation, index: int, item: EvaluationItem) -> OwnAnswer:
        """What the adapter of the item's task answers. Hold nothing meanwhile: it needs a slot of its own.

        Raises:
            AnswerUnreadable: see `SkillProbes`. Besides, whatever the engine refuses.
        """
        known = self._of(sweep)
        if index not in known.answers:
            model = sweep.targets[known.adapters[item.task]].pinned
            found = await self._probes.answers(self._hold(model), [item], sweep.max_tokens)
            known.answers[index] = found[0]
        return known.answers[index]

    async def values(self, sweep: Evaluation, target: int, task: str, served: str, own: OwnAnswer) -> dict[str, float]:
        """How much of ``own`` the target keeps, which is held as ``served``. Raises as `of`."""
        if self._of(sweep).adapters[task] == target:
            return {KEPT: 1.0, KEPT_LIKELIHOOD: 1.0}
        read = await self._probes.read(lambda: nullcontext(served), [own])
        kept = input_kept(read)
        return {KEPT: kept.answers, KEPT_LIKELIHOOD: min(kept.likelihood, 1.0)}

    def _of(self, sweep: Evaluation) -> _Known:
        if self._known.sweep_id != sweep.id:
            plan = SweepPlan.model_validate(sweep.search)
            self._known = _Known(sweep.id, {task: measure.adapter for task, measure in plan.tasks.items()})
        return self._known
