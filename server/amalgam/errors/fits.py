"""Errors of fits, which make a merge keep what its inputs do, by prompts of each, before it is built.

- asking: FitRefused
- reading: FitUnread
- the search: FitUnfinished, FitStopped
"""

from amalgam.errors import Conflict, InvalidRequest


class FitRefused(InvalidRequest):
    """A fit that does not go with its merge.

    Next step: the message says what to change.
    """

    code = "fit_refused"
    param = "fit"

    def __init__(self, reason: str) -> None:
        super().__init__(f"The merge cannot be fitted: {reason}.")


class FitUnread(InvalidRequest):
    """Prompts of a fit that the base model was to read, and did not; nothing is built.

    Next step: the message says why; ``"method": "weights"`` needs no reading.
    """

    status = 422
    code = "fit_unread"
    param = "fit.prompts"

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The prompts of the fit cannot be read: {reason}. Mend that; a server also takes "
            '"method": "weights", which tries weights on the engine.'
        )


class FitUnfinished(InvalidRequest):
    """A search for weights that ended before one candidate was measured to the end; nothing is built.

    Next step: a larger ``fit.budget_s``, fewer prompts, or what the refusals of its sweep ask for.
    """

    status = 422
    code = "fit_unfinished"
    param = "fit.budget_s"

    def __init__(self, sweep_id: str) -> None:
        super().__init__(
            f"The search {sweep_id} ended before one candidate was measured to the end. Give it a larger budget_s or "
            f"fewer prompts; GET /admin/v1/evaluations/{sweep_id} says what was refused."
        )


class FitStopped(Conflict):
    """A search for weights that was cancelled or deleted, or that failed, so that its merge is not built.

    Next step: submit the merge again; the message says how the search ended.
    """

    code = "fit_stopped"

    def __init__(self, sweep_id: str, reason: str) -> None:
        super().__init__(f"The search {sweep_id} for the merge's weights {reason}. Submit the merge again.")
