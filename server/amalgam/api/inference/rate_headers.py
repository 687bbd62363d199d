"""What is left of a caller's limits, as headers: in OpenAI's words, and in Anthropic's on its own endpoint."""

import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from amalgam.domain.limits import Measure
from amalgam.engine.protocol import Endpoint
from amalgam.services.limits import LimitView

RATE_HEADERS: Final = "amalgam.rate_headers"
"""This key of a request's scope holds the headers of its answer, whatever that is."""
_WORDS: Final = {Measure.REQUESTS: "requests", Measure.TOKENS: "tokens"}


def rate_headers(endpoint: Endpoint, views: Mapping[Measure, LimitView], now: datetime) -> dict[str, str]:
    """The headers of an answer.

    Args:
        endpoint: decides whose words are used.
        views: of the limits by the minute, the tightest of each kind.
        now: the moment that times are told from.
    """
    found: dict[str, str] = {}
    for measure, view in views.items():
        word = _WORDS[measure]
        if endpoint in ("messages", "count_tokens"):
            reset = (now + timedelta(seconds=math.ceil(view.full_in_s))).strftime("%Y-%m-%dT%H:%M:%SZ")
            said = {"limit": str(view.limit), "remaining": str(view.left), "reset": reset}
            found |= {f"anthropic-ratelimit-{word}-{name}": value for name, value in said.items()}
        else:
            said = {"limit": str(view.limit), "remaining": str(view.left), "reset": duration(view.full_in_s)}
            found |= {f"x-ratelimit-{name}-{word}": value for name, value in said.items()}
    return found


def duration(seconds: float) -> str:
    """Write seconds as ``6m0s``: whole ones, rounded up."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
