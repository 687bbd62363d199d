"""What a request came to, written down for who asked, once its last byte is out or its client gone."""

from typing import Final

from starlette.types import Scope

from amalgam.api.access import CALLER, Caller
from amalgam.api.state import Services
from amalgam.domain.usage import Counts, Spender
from amalgam.telemetry.metrics import TokenUsage
from amalgam.telemetry.request_watch import RequestWatch

PROBE: Final = "probe"
"""This endpoint is charged for what the engine was asked beside inference: the tokens by which a new version is tried.
"""


def charge(scope: Scope, watch: RequestWatch, usage: TokenUsage | None, code: int) -> None:
    """Count a request that came to a version, and tokens that were used for any other.

    Args:
        scope: of the request, whose caller is known.
        watch: that saw it.
        usage: as the answer tells it; counts where the engine itself has counted nothing.
        code: what the request counts as.
    """
    context, tokens = watch.context, watch.context.tokens
    if watch.endpoint is None and not tokens.total:
        return
    app_services: Services | None = getattr(scope["app"].state, "amalgam", None)
    caller: Caller | None = scope.get(CALLER)
    if app_services is None or caller is None or (context.adapter is None and not tokens.total):
        return
    if tokens.total or usage is None:
        counts = Counts(1, tokens.prompt, tokens.cached, tokens.completion, context.blend_builds)
    else:
        counts = Counts(1, usage.prompt, 0, usage.completion, context.blend_builds)
    where = (context.alias or "", context.adapter or "", watch.endpoint or PROBE)
    app_services.usage.add(Spender(caller.tenant_id, caller.key_id, *where), counts)
    app_services.metrics.tenant_used(caller.tenant_id, code, counts.prompt_tokens, counts.completion_tokens)
