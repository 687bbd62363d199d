"""One request against the limits of its key and tenant: what it may take is reserved, what it took is settled."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

from starlette.requests import Request

from amalgam.api.access import caller_of
from amalgam.api.inference.body_reader import TEXT_BYTES
from amalgam.api.inference.rate_headers import RATE_HEADERS, rate_headers
from amalgam.api.inference.token_cost import ANSWER_FIELDS, TokenCost, cost_of, counted_prompt
from amalgam.api.state import Services
from amalgam.domain.limits import Measure, Payer
from amalgam.engine.protocol import Endpoint
from amalgam.errors import AmalgamError
from amalgam.errors.limits import BudgetSpent, RateLimited, RequestExceedsLimit
from amalgam.services.limits import RequestLimits, Reservation
from amalgam.telemetry.context import tokens_of_current

ANSWER_HEADER: Final = "x-amalgam-max-tokens"
"""It says how long an answer was allowed to be, where the request did not say and a limit on tokens applies."""


def payer_of(app_services: Services, request: Request) -> Payer | None:
    """Who is charged; None for whom there is no tenant any more."""
    caller = caller_of(request)
    tenant = app_services.keys.tenant(caller.tenant_id)
    return None if tenant is None else Payer(tenant, app_services.keys.key(caller.key_id))


@dataclass(slots=True)
class Spending:
    """What a request has reserved. A context manager: at its end the request is settled.

    Attributes:
        body: of the request, with a bound on the answer where it said none and needs one.
        headers: of the answer.
        is_asked: whether the engine has been asked; what it then says nothing of counts as used.
        weight: the tenant's share under contention.
    """

    body: Mapping[str, Any]
    reservation: Reservation | None = None
    limits: RequestLimits | None = None
    headers: dict[str, str] = field(default_factory=dict)
    is_asked: bool = False
    weight: float = 1.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Charge what the engine has counted."""
        if self.reservation is None:
            return
        used = tokens_of_current().total
        is_silent = used == 0 and self.is_asked and error is None
        self.reservation.spent(self.reservation.reserved if is_silent else used)
        self.reservation.settle()


async def begin_spending(
    app_services: Services, endpoint: Endpoint, request: Request, body: Mapping[str, Any], sequences: int
) -> Spending:
    """Let a request pass its limits.

    Args:
        app_services: what routes may call.
        endpoint: that is asked.
        request: that asks.
        body: checked.
        sequences: that it has the engine run at once.

    Raises:
        RateLimited, BudgetSpent, RequestExceedsLimit, RegistryUnavailable: see `Limiter.reserve`.
        ModelNotFound: nothing of that name, where names are limited.
    """
    payer = payer_of(app_services, request)
    if payer is None:
        return Spending(body)
    model = body.get("model")
    inference = app_services.inference
    limits = await inference.found(lambda: app_services.limits.of(payer, lambda: inference.names_of(model)))
    if limits is None:
        return Spending(body, weight=payer.tenant.weight)
    admission = _Admission(app_services, endpoint, request, limits, payer.tenant.weight)
    try:
        return await admission.enter(body, sequences)
    except AmalgamError as error:
        admission.tell()
        if isinstance(error, RateLimited | BudgetSpent | RequestExceedsLimit):
            app_services.metrics.refused(error.counted_as)
        raise


@dataclass(frozen=True, slots=True)
class _Admission:
    services: Services
    endpoint: Endpoint
    request: Request
    limits: RequestLimits
    weight: float

    def tell(self) -> dict[str, str]:
        """What is left, for the answer, whatever it will be."""
        found = rate_headers(self.endpoint, self.services.limits.views(self.limits), self.services.limits.today())
        self.request.scope[RATE_HEADERS] = found
        return found

    async def enter(self, body: Mapping[str, Any], sequences: int) -> Spending:
        """Reserve by what the prompt can be at most, and where that is more than is left, by what it is."""
        room = self.limits.token_room
        if room is None or self.endpoint not in ANSWER_FIELDS:
            return self._spending(body, await self.services.limits.reserve(self.limits, 0))
        context = self.services.bodies.context_tokens
        size = context or 0 if self.services.bodies.reads_media else self.request.scope.get(TEXT_BYTES, 0)
        added, unsaid = await self.services.inference.found(lambda: self._by_profiles(body))
        cost = cost_of(self.endpoint, body, sequences, size + added, context)
        refusal: AmalgamError | None = None
        if context is None or cost.answer is not None or cost.prompt + unsaid <= context:
            try:
                return await self._reserved(body, cost, unsaid)
            except (RateLimited, BudgetSpent, RequestExceedsLimit) as error:
                refusal = error
                await self._require_hope(cost, error)
        base = self.services.catalog.base.served_name
        prompt = await counted_prompt(self.endpoint, body, self.services.engine, base, self.request)
        if prompt is None and refusal is not None:
            raise refusal
        exact = TokenCost(cost.prompt if prompt is None else prompt + added, cost.sequences, cost.answer)
        return await self._reserved(body, exact, self._most(exact, unsaid, room, context))

    def _by_profiles(self, body: Mapping[str, Any]) -> tuple[int, int]:
        """What serving profiles may add to the prompt, bytes, and the longest answer where the request does not say."""
        catalog = self.services.catalog
        found = [catalog.profile(name) for name in self.services.inference.names_of(body.get("model"))]
        profiles = [profile for profile in found if profile is not None]
        added = [
            len((profile.system_prompt or "").encode()) + len((profile.chat_template or "").encode())
            for profile in profiles
        ]
        said = [one.sampling.max_tokens for one in profiles if one.sampling.max_tokens is not None]
        return max(added, default=0), min([self.services.settings.access.unsaid_answer_tokens, *said])

    async def _require_hope(self, cost: TokenCost, refusal: RateLimited | BudgetSpent | RequestExceedsLimit) -> None:
        """Nothing where the request may pass once its prompt is counted: else nobody is made to count it.

        Raises:
            RateLimited, BudgetSpent, RequestExceedsLimit: it may not, however short its prompt.
        """
        if not Measure(refusal.field).counts_tokens:
            raise refusal
        least = TokenCost(1, cost.sequences, 1 if cost.answer is None else cost.answer).total()
        if self.services.limits.tokens_left(self.limits) < least:
            (await self.services.limits.reserve(self.limits, least)).settle()

    def _most(self, cost: TokenCost, unsaid: int, room: int, context: int | None) -> int:
        """Tokens of an answer that says no bound: what the limits, and the context, leave for it."""
        bounds = [unsaid, (room - cost.prompt) // cost.sequences]
        if context is not None and context > cost.prompt:
            bounds.append(context - cost.prompt)
        return max(1, min(bounds))

    async def _reserved(self, body: Mapping[str, Any], cost: TokenCost, unsaid: int) -> Spending:
        """Reserve; an answer without a bound gets ``unsaid``."""
        if cost.answer is not None:
            return self._spending(body, await self.services.limits.reserve(self.limits, cost.total()))
        reservation = await self.services.limits.reserve(self.limits, cost.total(unsaid))
        spending = self._spending({**body, ANSWER_FIELDS[self.endpoint][-1]: unsaid}, reservation)
        spending.headers[ANSWER_HEADER] = str(unsaid)
        return spending

    def _spending(self, body: Mapping[str, Any], reservation: Reservation) -> Spending:
        return Spending(body, reservation, self.limits, dict(self.tell()), weight=self.weight)


def blend_counter(app_services: Services, spending: Spending) -> Callable[[], Awaitable[None]] | None:
    """What to await before a blend is built for the request; None where nobody counts."""
    limits = spending.limits
    return None if limits is None or not limits.blend_needs else partial(app_services.limits.count_blend, limits)
