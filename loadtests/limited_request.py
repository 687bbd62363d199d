"""One request as far as limits and the ledger of usage concern it: reserved, settled and written down; nothing else."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

from starlette.requests import Request

from amalgam.api.access import CALLER, Caller
from amalgam.api.inference.body_reader import TEXT_BYTES
from amalgam.api.inference.charging import charge
from amalgam.api.inference.spending import begin_spending
from amalgam.api.state import Services
from amalgam.domain.limits import Slice, SliceAsk
from amalgam.domain.tenant import Key, Limits, Role, Tenant
from amalgam.services.limits import Limiter
from amalgam.services.usage_ledger import UsageLedger
from amalgam.telemetry.context import RequestContext, enter
from amalgam.telemetry.metrics import Metrics
from amalgam.telemetry.request_watch import RequestWatch

_LARGE = 1 << 40
_LIMITS = Limits(requests_per_minute=_LARGE, tokens_per_minute=_LARGE, concurrent_requests=_LARGE)
_MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


class GenerousSlices:
    """Gives all that is wanted: what a database takes is not the request's time."""

    async def exchange(
        self, front: str, reached_s: float | None, asks: Sequence[SliceAsk]
    ) -> tuple[float, Sequence[Slice]]:
        """See `amalgam.services.limits.SliceStore`."""
        return time.monotonic() if reached_s is None else reached_s, [Slice(ask.want, 0, {}) for ask in asks]

    async def sweep(self) -> None:
        """See `amalgam.services.limits.SliceStore`."""


async def _found(look: Callable[[], Any], *, must_ask: bool = False) -> Any:
    """What is in memory, as most of what is asked for."""
    return look()


class LimitedRequest:
    """Requests of one key, one after another.

    Args:
        body: of each.
        is_limited: whether its tenant and its key have three limits each.
    """

    def __init__(self, body: Mapping[str, Any], *, is_limited: bool) -> None:
        limits = _LIMITS if is_limited else Limits()
        times = {"created_at": _MOMENT, "updated_at": _MOMENT}
        tenant = Tenant.model_validate({"id": "acme", "name": "Acme", "limits": limits} | times)
        key = Key(
            id="0" * 16, tenant="acme", secret_digest="0" * 64, role=Role.CLIENT, limits=limits, created_at=_MOMENT
        )
        self._metrics, self._body = Metrics(), body
        services = SimpleNamespace(
            keys=SimpleNamespace(tenant=lambda _: tenant, key=lambda _: key),
            limits=Limiter(GenerousSlices(), "front", time.monotonic, lambda: _MOMENT),
            usage=UsageLedger(cast(Any, None), "front", lambda: _MOMENT, 1),
            inference=SimpleNamespace(names_of=lambda model: (model,), found=_found),
            catalog=SimpleNamespace(profile=lambda name: None, base=SimpleNamespace(served_name="tiny")),
            bodies=SimpleNamespace(context_tokens=8192, reads_media=False),
            settings=SimpleNamespace(access=SimpleNamespace(unsaid_answer_tokens=2048)),
            metrics=self._metrics,
        )
        self._services = cast(Services, services)
        app = SimpleNamespace(state=SimpleNamespace(amalgam=services))
        caller = Caller("word", frozenset({Role.CLIENT}), key_id=key.id, tenant_id="acme")
        self._scope = {"type": "http", "app": app, CALLER: caller, TEXT_BYTES: 250, "headers": []}

    async def once(self) -> None:
        """A request that is answered at once."""
        scope, context, watch = self._begun()
        with await begin_spending(self._services, "chat_completions", Request(scope), self._body, 1):
            context.tokens.prompt, context.tokens.completion = 50, 100
        charge(scope, watch, None, 200)

    async def uncounted(self) -> None:
        """The same where nobody reserves and nobody writes down."""
        _, context, _ = self._begun()
        context.tokens.prompt, context.tokens.completion = 50, 100

    def _begun(self) -> tuple[dict[str, Any], RequestContext, RequestWatch]:
        scope = dict(self._scope)
        context = RequestContext("req", adapter="sql@1")
        enter(context)
        return scope, context, RequestWatch("chat_completions", context, time.monotonic)
