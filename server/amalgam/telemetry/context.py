"""What is known of the request that is being answered: its id, the version that answers it, and what it takes."""

from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(slots=True)
class TokenCount:
    """Tokens of one request, as the engine counts them while it works, whatever becomes of the answer."""

    prompt: int = 0
    """It counts each once, however many choices there are; with those that were found in the cache."""
    cached: int = 0
    completion: int = 0
    """It counts those of all choices."""

    def add(self, *, prompt: int = 0, cached: int = 0, completion: int = 0) -> None:
        """Count so many more."""
        self.prompt += prompt
        self.cached += cached
        self.completion += completion

    @property
    def total(self) -> int:
        """Prompt and completion."""
        return self.prompt + self.completion


@dataclass(frozen=True, slots=True)
class Asker:
    """Who has a place in the batch for a request; an engine elsewhere has them take turns once more."""

    client: str
    """It is no key, but always the same for one."""
    tenant: str
    weight: float
    """It is the tenant's share under contention."""
    sequences: int
    """So many run at once for the request."""


@dataclass(slots=True)
class RequestContext:
    """The request that is being answered."""

    request_id: str
    adapter: str | None = None
    """It is the exact version (``sql@3``) or the base model's served name; None before it is known."""
    alias: str | None = None
    """The request named this alias, if it did."""
    target: str | None = None
    """The alias was drawn to mean this, as it names it."""
    experiment: str | None = None
    """The alias carried this experiment."""
    slow_ms: int | None = None
    """A longer answer is slow to that experiment, milliseconds."""
    unit: str | None = None
    """It is the digest of what always meets the same target; None where each request draws anew."""
    route: str | None = None
    """It tells why the alias' router chose as it did, if it has one."""
    trace_id: str | None = None
    """It is that of the caller's ``traceparent``, 32 hexadecimal digits."""
    tokens: TokenCount = field(default_factory=TokenCount)
    """It counts what the engine has done for it so far."""
    blend_builds: int = 0
    """So many blends were built for it."""
    asker: Asker | None = None
    """Without one, it needs no place in the batch, or has none yet."""
    tenant: str | None = None
    """This one's key asks; None before it is known, and where no client asks."""


_current: ContextVar[RequestContext | None] = ContextVar("amalgam_request", default=None)


def enter(context: RequestContext) -> None:
    """Make ``context`` the current one of this task and of the tasks it starts.

    It is not taken back: each request has a task of its own, and what handles its failure runs after its routes.
    """
    _current.set(context)


def current() -> RequestContext | None:
    """The request that this task works for."""
    return _current.get()


def note_tenant(tenant: str) -> None:
    """Say whose key asks; nothing outside of a request."""
    context = _current.get()
    if context is not None:
        context.tenant = tenant


def note_adapter(engine_name: str) -> None:
    """Say which version the current request means; nothing outside of a request."""
    context = _current.get()
    if context is not None:
        context.adapter = engine_name


def note_alias(name: str) -> None:
    """Say which alias the current request named; nothing outside of a request."""
    context = _current.get()
    if context is not None:
        context.alias = name


def note_target(target: str, experiment: str | None, slow_ms: int | None, unit: str | None) -> None:
    """Say what an alias means for the current request, and what for; nothing outside of a request."""
    context = _current.get()
    if context is not None:
        context.target, context.experiment, context.slow_ms, context.unit = target, experiment, slow_ms, unit


def note_route(reason: str) -> None:
    """Say why a router chose what answers the current request; nothing outside of a request."""
    context = _current.get()
    if context is not None:
        context.route = reason


def note_blend_build() -> None:
    """Say that a blend is built for the current request; nothing outside of a request."""
    context = _current.get()
    if context is not None:
        context.blend_builds += 1


def note_asker(asker: Asker) -> None:
    """Say for whom the current request has a place in the batch; nothing outside of a request."""
    context = _current.get()
    if context is not None:
        context.asker = asker


def tokens_of_current() -> TokenCount:
    """Where the tokens of the current request are counted; outside of a request, where nobody looks."""
    context = _current.get()
    return TokenCount() if context is None else context.tokens
