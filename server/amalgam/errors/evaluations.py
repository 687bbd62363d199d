"""Errors of evaluations and sweeps, which are evaluations of many blends.

- asking: InvalidPattern, MetricNotApplicable, EvaluationTooLarge, TooManyEvaluations, InvalidSweep
- the row: EvaluationNotFound, EvaluationStateConflict, EvaluationsDiffer, TargetNotEvaluated
- the run: EvaluationStopped, AnswerUnreadable
"""

from collections.abc import Sequence

from amalgam.errors import AmalgamError, Conflict, InvalidRequest, NotFound, Unavailable


class InvalidPattern(InvalidRequest):
    """A pattern that cannot be read, or that is too large.

    Next step: the message says where.
    """

    code = "invalid_pattern"
    param = "items"

    def __init__(self, reason: str) -> None:
        super().__init__(f"The pattern cannot be used: {reason}. Patterns are RE2's.")


class MetricNotApplicable(InvalidRequest):
    """A metric that not one item has what it takes for.

    Next step: add it to items, or leave the metric out.
    """

    code = "metric_not_applicable"
    param = "metrics"

    def __init__(self, metric: str, needs: str, task: str | None = None) -> None:
        where = "no item" if task is None else f"no item of the task {task!r}"
        super().__init__(
            f"Metric {metric!r} needs {needs}, which {where} has. Add it to items, or leave the metric out."
        )


class EvaluationTooLarge(InvalidRequest):
    """More items times targets than ``AMALGAM_EVALUATION_MAX_CALLS``.

    Next step: send fewer items or targets.
    """

    code = "evaluation_too_large"
    param = "items"

    def __init__(self, targets: int, items: int, limit: int) -> None:
        super().__init__(
            f"{targets} targets on {items} items are {targets * items} measurements; one evaluation has at most "
            f"{limit} (AMALGAM_EVALUATION_MAX_CALLS). Take fewer items or targets."
        )


class TooManyEvaluations(Unavailable):
    """As many evaluations wait as may: 100.

    Next step: repeat later, or cancel one.
    """

    status = 429
    code = "too_many_evaluations"
    type = "rate_limit_error"
    retry_after_s = 60.0

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} evaluations wait already. Repeat when one has ended, or cancel one.")


class InvalidSweep(InvalidRequest):
    """A search that gives no candidates, or too many.

    Next step: the message says why.
    """

    code = "invalid_sweep"
    param = "search"

    def __init__(self, reason: str) -> None:
        super().__init__(f"The search cannot be run: {reason}.")


class EvaluationNotFound(NotFound):
    """No evaluation and no sweep of that id.

    Next step: ``GET /admin/v1/evaluations`` lists what there is.
    """

    code = "evaluation_not_found"
    param = "evaluation_id"

    def __init__(self, evaluation_id: str) -> None:
        super().__init__(f"No evaluation has the id {evaluation_id[:64]!r}. GET /admin/v1/evaluations lists them.")


class TargetNotEvaluated(NotFound):
    """An evaluation has no such target or candidate.

    Next step: the message lists them.
    """

    code = "target_not_evaluated"
    param = "target"

    def __init__(self, target: str, known: Sequence[str]) -> None:
        shown = ", ".join(known[:8]) + (", …" if len(known) > 8 else "")
        super().__init__(f"{target[:256]!r} was not evaluated here. Targets: {shown}.")


class EvaluationStateConflict(Conflict):
    """An evaluation cannot do that in its state.

    Next step: look at it.
    """

    code = "evaluation_state_conflict"
    param = "evaluation_id"

    def __init__(self, evaluation_id: str, state: str, wanted: str) -> None:
        super().__init__(
            f"Evaluation {evaluation_id} is {state} and cannot be {wanted}. "
            f"GET /admin/v1/evaluations/{evaluation_id} shows where it stands."
        )


class EvaluationsDiffer(Conflict):
    """Two evaluations that have not asked the same.

    Next step: evaluate both on the same.
    """

    code = "evaluations_differ"
    param = "other"

    def __init__(self, one: str, other: str) -> None:
        super().__init__(
            f"{one} and {other} have other items or another longest answer, so their numbers cannot be compared. "
            "Evaluate both on the same items."
        )


class EvaluationStopped(AmalgamError):
    """A run that was cancelled, deleted or taken for dead keeps nothing more; only the log says so.

    Next step: nothing, or ``:resume``.
    """

    status = 409
    code = "evaluation_stopped"

    def __init__(self, evaluation_id: str) -> None:
        super().__init__(f"Evaluation {evaluation_id} does not run here any more. POST …:resume goes on with it.")


class AnswerUnreadable(AmalgamError):
    """The engine's answer to one item lacks what was asked for.

    Next step: the server's log may say more.
    """

    code = "answer_unreadable"

    def __init__(self, what: str) -> None:
        super().__init__(f"The engine's answer holds no {what}. The server's log may say more.")
