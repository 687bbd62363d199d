"""One request as the HTTP layer sees it go by: status, first token, gaps between tokens, how it ended.

A token is never parsed: a part of a stream counts where it begins as the endpoint's dialect begins a token. What
costs is paid once per request, when its numbers are added to the metrics.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Final

from amalgam.telemetry.context import RequestContext
from amalgam.telemetry.metric_table import INTER_TOKEN

CLIENT_GONE: Final = 499
"""The client left before its answer was complete; nginx's number, as HTTP has none."""

SAME_STEP_S: Final = 0.0005
"""Parts closer than this come from one engine step: the role before the first token, several choices, the usage."""

_OPENAI: Final = (b"data: {",)
_TOKEN_STARTS: Final[Mapping[str, tuple[bytes, ...]]] = {
    "chat_completions": _OPENAI,
    "completions": _OPENAI,
    "responses": (
        b"event: response.output_text.delta",
        b"event: response.reasoning_text.delta",
        b"event: response.function_call_arguments.delta",
    ),
    "messages": (b"event: content_block_delta",),
}
GENERATING: Final = frozenset(_TOKEN_STARTS)
_ERROR_STARTS: Final = (b'data: {"error"', b"event: error", b"event: response.failed")
_BOUNDS: Final = INTER_TOKEN.bounds


class RequestWatch:
    """Told of the start, of every part and of the end.

    Args:
        endpoint: label of the endpoint; None for what is not inference.
        context: of the request; says which version answers.
        clock: monotonic seconds.
    """

    __slots__ = (
        "_clock",
        "_last_at",
        "_starts",
        "began",
        "broken",
        "context",
        "endpoint",
        "finished",
        "first_part",
        "first_s",
        "gap_counts",
        "gap_sum_s",
        "last_part",
        "status",
        "steps",
    )

    def __init__(self, endpoint: str | None, context: RequestContext, clock: Callable[[], float]) -> None:
        self.endpoint = endpoint
        self.context = context
        self._clock = clock
        self._starts = _TOKEN_STARTS.get(endpoint or "", ())
        self.began = clock()
        self._last_at = self.began
        self.status = 0
        """HTTP status; 0 until the answer starts."""
        self.finished = False
        """Whether the last byte was sent."""
        self.broken = False
        """Whether a stream told of an error."""
        self.first_s: float | None = None
        """Seconds to the first token of a stream."""
        self.steps = 0
        """Engine steps seen in a stream: its tokens, where there is one choice."""
        self.gap_counts: list[int] | None = None
        self.gap_sum_s = 0.0
        self.first_part = b""
        """The first part that was not empty, where the id of the answer stands."""
        self.last_part = b""
        """The last part that was not empty, where the usage stands."""

    def part(self, body: bytes, more: bool) -> None:
        """A part of the answer goes out."""
        if not more:
            self.finished = True
        if not body:
            return
        if not self.first_part:
            self.first_part = body
        self.last_part = body
        if body.startswith(_ERROR_STARTS):
            self.broken = True
            return
        if not body.startswith(self._starts):
            return
        now = self._clock()
        gap_s = now - self._last_at
        self._last_at = now
        if self.gap_counts is None:
            self.first_s = now - self.began
            self.gap_counts = [0] * (len(_BOUNDS) + 1)
            self.steps = 1
        elif gap_s >= SAME_STEP_S:
            self.gap_counts[bisect_left(_BOUNDS, gap_s)] += 1
            self.gap_sum_s += gap_s
            self.steps += 1

    def code(self, *, failed: bool, left: bool) -> int:
        """What the request counts as: its status, 499 where the client left, 500 where the server broke off."""
        if self.finished and not self.broken:
            return self.status
        if self.broken or (failed and not left):
            return 500
        if left or self.status:
            return CLIENT_GONE
        return 500

    def seconds(self) -> float:
        """Since the request arrived."""
        return self._clock() - self.began
