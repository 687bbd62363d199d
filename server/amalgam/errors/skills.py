"""Errors of what a merge keeps of its inputs.

- asking: ProbeRefused
- the figures: KeptTooLow, KeptUnknown
"""

from amalgam.errors import InvalidRequest


class KeptTooLow(InvalidRequest):
    """A merge that keeps less of an input than ``require.kept`` asks for; it is not published.

    Next step: let ``fit`` find weights, or lower ``require.kept``.
    """

    status = 422
    code = "kept_too_low"
    param = "require.kept"

    def __init__(self, adapter: str, kept: float, wanted: float) -> None:
        super().__init__(
            f"The merge gives {kept:.2f} of the answers of {adapter} alike; require.kept asks for {wanted:.2f}. "
            f"Let fit find the weights, give {adapter} a larger one, take another method, leave an input out, or lower "
            "require.kept."
        )


class KeptUnknown(InvalidRequest):
    """What a merge keeps could not be measured, and ``require.kept`` asks for it; it is not published.

    Next step: the message says why; mend the prompts, or leave ``require`` out.
    """

    status = 422
    code = "kept_unknown"
    param = "probe"

    def __init__(self, reason: str) -> None:
        super().__init__(f"What the merge keeps was not measured: {reason} Mend the prompts, or leave require out.")


class ProbeRefused(InvalidRequest):
    """Prompts that do not fit the inputs of a merge.

    Next step: the message names the input.
    """

    code = "probe_refused"
    param = "probe"

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The probe cannot be used: {reason}.")
