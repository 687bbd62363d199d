"""Errors of feedback and experiments.

- feedback: AnswerNotFound, FeedbackDiffers, TooMuchFeedback, FeedbackOff
- experiments: ExperimentNotFound, ExperimentRunning, NothingToCompare
"""

from amalgam.errors import Conflict, InvalidRequest, NotFound


class AnswerNotFound(NotFound):
    """No answer of that id that the key got and that may still be judged.

    Next step: send the id of a request or of its answer, with the key that asked, once the answer has ended; after two
    seconds every server knows of it.
    """

    code = "answer_not_found"
    param = "id"

    def __init__(self, answer_id: str, kept_hours: int, *, aliases_only: bool) -> None:
        asked = " that named an alias" if aliases_only else ""
        super().__init__(
            f"This key got no answer with the id {answer_id[:128]!r} in the last {kept_hours} hours to a "
            f"request{asked}. Send the header x-request-id of the answer, or the id in its body, with the key that "
            "asked; where the answer ended just now, send it again after two seconds."
        )


class FeedbackDiffers(Conflict):
    """The answer has another value under this name already; the first one counts.

    Next step: keep what was sent first, or send it under another name.
    """

    code = "feedback_differs"
    param = "value"

    def __init__(self, name: str, value: float) -> None:
        super().__init__(
            f"The answer has {value:g} as its {name} already, and the first value counts. "
            "Keep it, or send another name."
        )


class TooMuchFeedback(Conflict):
    """An answer is judged under as many names as it may be.

    Next step: send fewer names.
    """

    code = "too_much_feedback"
    param = "name"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The answer is judged under {limit} names, which is as many as it may be. Send fewer names.")


class FeedbackOff(Conflict):
    """The server keeps no answers, so that none can be judged.

    Next step: the operator sets ``AMALGAM_ANSWERS_KEEP_HOURS``.
    """

    code = "feedback_off"

    def __init__(self) -> None:
        super().__init__("This server keeps no answers to judge. Ask its operator to set AMALGAM_ANSWERS_KEEP_HOURS.")


class ExperimentNotFound(NotFound):
    """The alias never carried an experiment.

    Next step: ``PUT /admin/v1/aliases/{name}/experiment`` starts one.
    """

    code = "experiment_not_found"
    param = "name"

    def __init__(self, alias: str) -> None:
        super().__init__(
            f"The alias {alias!r} never carried an experiment. PUT /admin/v1/aliases/{alias}/experiment starts one."
        )


class ExperimentRunning(Conflict):
    """The alias carries an experiment that has not ended.

    Next step: stop it first.
    """

    code = "experiment_running"
    param = "name"

    def __init__(self, alias: str) -> None:
        super().__init__(
            f"The alias {alias!r} carries an experiment that has not ended. "
            f"DELETE /admin/v1/aliases/{alias}/experiment stops it."
        )


class NothingToCompare(InvalidRequest):
    """An experiment that nothing could come of: no candidate, nobody who judges, or a router that chooses.

    Next step: the message says what is missing.
    """

    code = "nothing_to_compare"

    def __init__(self, reason: str, param: str) -> None:
        super().__init__(f"{param} {reason}.", param=param)
