"""What is kept of an answer once its last byte is out: that it may be judged, and what it is to an experiment."""

import re
from typing import Final

from starlette.types import Scope

from amalgam.api.access import CALLER, Caller
from amalgam.api.state import Services
from amalgam.domain.feedback import MAX_ID_LENGTH, Answer
from amalgam.telemetry.request_watch import GENERATING, RequestWatch

_ID: Final = re.compile(rb'"id"\s*:\s*"([A-Za-z0-9._-]{1,%d})"' % MAX_ID_LENGTH)
_HEAD_BYTES: Final = 512
"""The id stands at the begin of an answer, and of the first event of a stream."""


def remember(scope: Scope, watch: RequestWatch, code: int, seconds: float) -> None:
    """Keep what feedback and experiments need of a request that ended.

    Args:
        scope: of the request, whose caller is known.
        watch: that saw it.
        code: what the request counts as.
        seconds: from its arrival to its last byte.
    """
    context = watch.context
    if watch.endpoint not in GENERATING:
        return
    app_services: Services | None = getattr(scope["app"].state, "amalgam", None)
    caller: Caller | None = scope.get(CALLER)
    if app_services is None or caller is None:
        return
    if context.experiment is not None and context.target is not None:
        is_slow = context.slow_ms is not None and seconds * 1e3 > context.slow_ms
        app_services.experiment_counts.add(context.experiment, context.target, is_error=code >= 500, is_slow=is_slow)
    if code != 200 or context.adapter is None:
        return
    found = _ID.search(watch.first_part[:_HEAD_BYTES])
    answer = Answer(
        id=context.request_id,
        completion_id=None if found is None else found[1].decode(),
        tenant=caller.tenant_id,
        key_id=caller.key_id,
        alias=context.alias or "",
        target=context.target or "",
        version=context.adapter,
        experiment=context.experiment,
        unit=context.unit,
    )
    app_services.answers.add(answer)
