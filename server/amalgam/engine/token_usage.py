"""How many tokens a request took, as vLLM tells it: on the request where it can, else in the answer's last part."""

import json
from collections.abc import Mapping
from typing import Any

from amalgam.telemetry.metrics import TokenUsage


def usage_left_on(request_state: Mapping[str, Any]) -> TokenUsage | None:
    """The usage of a request that vLLM's chat or completion handler answered to its end; None otherwise.

    Exact also for streams whose client did not ask for usage, and without parsing anything.

    Args:
        request_state: ``scope["state"]`` of the request, where vLLM puts ``request_metadata``.
    """
    usage = getattr(request_state.get("request_metadata"), "final_usage_info", None)
    if usage is None:
        return None
    return TokenUsage(int(usage.prompt_tokens or 0), int(usage.completion_tokens or 0))


def usage_in_answer(last_part: bytes) -> TokenUsage | None:
    """The usage in a whole JSON answer, or in the last event of a stream in the Responses dialect; None without one."""
    try:
        answer = json.loads(last_part[last_part.index(b"{") :])
        usage = answer.get("response", answer)["usage"]
        prompt = usage.get("input_tokens", usage.get("prompt_tokens", 0))
        completion = usage.get("output_tokens", usage.get("completion_tokens", 0))
        return TokenUsage(int(prompt), int(completion))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
