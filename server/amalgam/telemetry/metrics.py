"""All metrics of one server: counted here, declared in `metric_table`, rendered with vLLM's own by `page`.

Everything but `Scrape.text` belongs to the event loop's thread.
"""

import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from amalgam.telemetry import metric_table as table
from amalgam.telemetry.context import RequestContext, current
from amalgam.telemetry.metric_spec import MetricSpec
from amalgam.telemetry.metric_table import METRICS
from amalgam.telemetry.page import Scrape
from amalgam.telemetry.request_watch import GENERATING, RequestWatch
from amalgam.telemetry.series import Distribution, Values
from amalgam.telemetry.server_state import ServerState

MAX_ADAPTER_LABELS: Final = 512
"""So many versions have numbers of their own; further ones are counted together as ``other``."""
MAX_ALIAS_PAIRS: Final = 256
"""So many pairs of an alias and a version have numbers of their own; further ones are counted together as ``other``."""
MAX_TENANT_LABELS: Final = 256
"""So many tenants have numbers of their own; further ones are counted together as ``other``."""
OTHER: Final = "other"
BLEND: Final = "blend"
"""It stands for all blends together: clients make their names, as many as they like."""
NONE: Final = "none"
_FINAL_STATES: Final = {
    **dict.fromkeys(("merge", "export"), ("published", "failed", "cancelled")),
    **dict.fromkeys(("evaluation", "sweep"), ("done", "failed", "cancelled")),
}
"""Each kind of job has these."""
_CUTS: Final = ("head", "body", "answer", "idle", "busy")
_BLEND_STEPS: Final = frozenset({"parse", "wait", "read", "merge", "write"})
_BLEND_NAME_LENGTH: Final = len("blend@") + 12
"""It is the least; the name of a version of an adapter called blend is shorter."""
_STEPS: Final = frozenset({"read", "merge", "write", "register", "probe", "export", "sync", "measure", "kept"})


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens of one answered request."""

    prompt: int
    completion: int


class Metrics:
    """The numbers, and the page.

    Args:
        clock: monotonic seconds.
        wall_clock: Unix seconds.
        build: versions, for ``amalgam_build_info``: of this server, of vLLM, of Python.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        build: tuple[str, str, str] = ("", "", ""),
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._registry_read_at = clock()
        self._adapters: set[str] = set()
        self._alias_pairs: set[tuple[str, str]] = set()
        self._tenants: set[str] = set()
        self._values = {spec: Values(spec) for spec in METRICS if spec.kind != "histogram"}
        self._distributions = {spec: Distribution(spec) for spec in METRICS if spec.kind == "histogram"}
        # From zero on, so that the first event is a rate already.
        for spec, values in self._values.items():
            if not spec.labels:
                values.put(0.0)
        for kind, states in _FINAL_STATES.items():
            for state in states:
                self.values(table.JOBS_FINISHED).put(0.0, (kind, state))
        for spec, reasons in ((table.REFUSED, table.REFUSALS), (table.CONNECTIONS_CUT, _CUTS)):
            for reason in reasons:
                self.values(spec).put(0.0, (reason,))
        self.values(table.BUILD).put(1, build)

    def values(self, spec: MetricSpec) -> Values:
        """The counter or gauge of ``spec``."""
        return self._values[spec]

    def distribution(self, spec: MetricSpec) -> Distribution:
        """The histogram of ``spec``."""
        return self._distributions[spec]

    def begin(self, endpoint: str | None, context: RequestContext) -> RequestWatch:
        """A request arrived; one of inference, with an ``endpoint``, must come to `end`."""
        if endpoint is not None:
            self._values[table.RUNNING].add((endpoint,))
        return RequestWatch(endpoint, context, self._clock)

    def end(self, watch: RequestWatch, code: int, seconds: float, usage: TokenUsage | None) -> None:
        """An inference request ended: count and time it.

        Args:
            watch: from `begin`, with an endpoint.
            code: see `RequestWatch.code`.
            seconds: from its arrival to its last byte.
            usage: exact, where the answer was complete; without it a stream's steps are its tokens.
        """
        assert watch.endpoint is not None
        endpoint, adapter = watch.endpoint, self.adapter_label(watch.context.adapter)
        self._values[table.RUNNING].add((endpoint,), -1)
        self._values[table.REQUESTS].add((endpoint, adapter, str(code)))
        self._distributions[table.REQUEST_SECONDS].observe(seconds, (endpoint, adapter))
        if watch.context.alias is not None:
            pair = self._alias_pair(watch.context.alias, adapter)
            self._values[table.ALIAS_REQUESTS].add((*pair, str(code)))
            if watch.context.route is not None:
                self._values[table.ALIAS_ROUTES].add((*pair, watch.context.route))
            self._distributions[table.ALIAS_SECONDS].observe(seconds, pair)
        if endpoint not in GENERATING:
            return
        first_s = seconds if watch.first_s is None and code == 200 else watch.first_s
        if first_s is not None:
            self._distributions[table.FIRST_TOKEN].observe(first_s, (adapter,))
        if watch.gap_counts is not None and watch.steps > 1:
            self._distributions[table.INTER_TOKEN].add(watch.gap_counts, watch.gap_sum_s, (adapter,))
        if usage is not None:
            self._values[table.PROMPT_TOKENS].add((adapter,), usage.prompt)
        completion = watch.steps if usage is None else usage.completion
        if completion:
            self._values[table.COMPLETION_TOKENS].add((adapter,), completion)

    def running(self) -> float:
        """Inference requests of clients that are being answered."""
        return self._values[table.RUNNING].total()

    def tenant_used(self, tenant: str, code: int, prompt: int, completion: int) -> None:
        """A request of a tenant ended, and the engine worked on so many tokens for it."""
        tenant = self._tenant_label(tenant)
        self._values[table.TENANT_REQUESTS].add((tenant, str(code)))
        for kind, tokens in (("prompt", prompt), ("completion", completion)):
            self._values[table.TENANT_TOKENS].add((tenant, kind), tokens)

    def tenants_stored(self, rows: Iterable[tuple[str, int, int]], limits: Mapping[str, int]) -> None:
        """What tenants have stored now: bytes of adapters and of files of each, and what each may store."""
        for spec in (table.TENANT_STORED, table.TENANT_STORED_LIMIT):
            self._values[spec].clear()
        for tenant, adapters, files in rows:
            label = self._tenant_label(tenant)
            for kind, size in (("adapters", adapters), ("files", files)):
                self._values[table.TENANT_STORED].add((label, kind), size)
            if label != OTHER and tenant in limits:
                self._values[table.TENANT_STORED_LIMIT].put(float(limits[tenant]), (label,))

    def _tenant_label(self, tenant: str) -> str:
        if tenant not in self._tenants:
            if len(self._tenants) >= MAX_TENANT_LABELS:
                return OTHER
            self._tenants.add(tenant)
        return tenant

    def evaluation_call(self, kind: str, *, refused: bool) -> None:
        """An evaluation, or a sweep, asked an item of a target."""
        self._values[table.EVALUATION_CALLS].add((kind, "refused" if refused else "measured"))

    def batch_line(self, *, refused: bool) -> None:
        """A line of a batch was asked."""
        self._values[table.BATCH_LINES].add(("refused" if refused else "answered",))

    def fields_ignored(self, endpoint: str, fields: Iterable[str]) -> None:
        """A request had ``fields`` that were taken without effect; each is in a table, or ``other``."""
        for field_name in fields:
            self._values[table.FIELDS_IGNORED].add((endpoint, field_name))

    def end_http(self, method: str, route: str, code: int) -> None:
        """A request other than inference ended; ``route`` is its template."""
        self._values[table.HTTP_REQUESTS].add((method, route, str(code)))

    def adapter_label(self, engine_name: str | None) -> str:
        """The label of a version: its name, ``none`` without one, ``blend`` of blends, ``other`` beyond the limit."""
        if engine_name is None:
            return NONE
        if engine_name.startswith("blend@") and len(engine_name) >= _BLEND_NAME_LENGTH:
            return BLEND
        if engine_name in self._adapters:
            return engine_name
        if len(self._adapters) >= MAX_ADAPTER_LABELS:
            return OTHER
        self._adapters.add(engine_name)
        return engine_name

    def _alias_pair(self, alias: str, adapter: str) -> tuple[str, str]:
        """The labels of an alias and the version drawn for it; ``other`` for both beyond the limit."""
        pair = (alias, adapter)
        if pair not in self._alias_pairs:
            if len(self._alias_pairs) >= MAX_ALIAS_PAIRS:
                return OTHER, OTHER
            self._alias_pairs.add(pair)
        return pair

    def make_room(self, alive: Container[str], aliases: Container[str] = ()) -> None:
        """Once the labels are full, forget the numbers of versions and of aliases that no longer exist.

        Args:
            alive: names of versions, and of the base model.
            aliases: their names.
        """
        if len(self._alias_pairs) >= MAX_ALIAS_PAIRS:
            for alias, adapter in [p for p in self._alias_pairs if p[0] not in aliases or p[1] not in alive]:
                self._alias_pairs.discard((alias, adapter))
                self._forget(alias=alias, adapter=adapter)
        if len(self._adapters) < MAX_ADAPTER_LABELS:
            return
        for gone in [name for name in self._adapters if name not in alive]:
            self._adapters.discard(gone)
            self._alias_pairs = {pair for pair in self._alias_pairs if pair[1] != gone}
            self._forget(adapter=gone)

    def _forget(self, **labels: str) -> None:
        for values in self._values.values():
            values.drop(**labels)
        for distribution in self._distributions.values():
            distribution.drop(**labels)

    def adapter_loaded(self, seconds: float | None) -> None:
        """A load ended, after ``seconds``; None: the engine refused it."""
        if seconds is None:
            self._values[table.LOAD_FAILURES].add()
        else:
            self._distributions[table.ADAPTER_LOAD].observe(seconds)

    def answer_not_finite(self, engine_name: str) -> None:
        """A version, or the base model, gave NaN or an infinity."""
        self._values[table.NOT_FINITE].add((self.adapter_label(engine_name),))

    def adapter_evicted(self) -> None:
        """An adapter left the engine's memory for another."""
        self._values[table.EVICTIONS].add()

    @contextmanager
    def adapter_waiting(self) -> Iterator[None]:
        """A request waits for a place while the block runs."""
        self._values[table.ADAPTER_WAITING].add()
        try:
            yield
        finally:
            self._values[table.ADAPTER_WAITING].add(amount=-1)

    @contextmanager
    def turn_waiting(self) -> Iterator[None]:
        """A request waits for its adapter's turn while the block runs."""
        self._values[table.TURN_WAITING].add()
        try:
            yield
        finally:
            self._values[table.TURN_WAITING].add(amount=-1)

    def turn_waited(self, seconds: float) -> None:
        """A request's turn came after ``seconds``."""
        self._distributions[table.TURN_WAIT].observe(seconds)

    def admitted(self, count: int) -> None:
        """Note that so many inference requests are in progress now."""
        self._values[table.ADMITTED].put(count)

    def admission_bound(self, total: int) -> None:
        """Note that so many may be in progress."""
        self._values[table.ADMISSION_BOUND].put(total)

    def refused(self, reason: str) -> None:
        """A request was refused, for load or for a limit.

        Args:
            reason: one of `REFUSALS`.
        """
        self._values[table.REFUSED].add((reason,))
        context = current()
        if context is not None and context.tenant is not None:
            self._values[table.TENANT_REFUSED].add((self._tenant_label(context.tenant), reason))

    def connection_cut(self, reason: str) -> None:
        """A connection was ended: ``head``, ``body``, ``answer``, ``idle`` or ``busy``."""
        self._values[table.CONNECTIONS_CUT].add((reason,))

    def job_ended(self, kind: str, state: str, timings_s: Mapping[str, float] | None = None) -> None:
        """A job of some kind came to a final state; seconds by step where it came to a result."""
        self._values[table.JOBS_FINISHED].add((kind, state))
        for step, seconds in (timings_s or {}).items():
            self._distributions[table.JOB_STEP].observe(seconds, (kind, step if step in _STEPS else OTHER))

    def merge_kept(self, share: float) -> None:
        """A merge was measured: it keeps so much of the input that it keeps least, 0 to 1."""
        self._distributions[table.MERGE_KEPT].observe(share)

    def blend_built(self, seconds: float | None) -> None:
        """A build of a blend ended, after ``seconds``; None: it was refused or failed."""
        if seconds is None:
            self._values[table.BLEND_FAILURES].add()
        else:
            self._values[table.BLENDS_BUILT].add()
            self._distributions[table.BLEND_BUILD].observe(seconds)

    def blend_steps(self, seconds_by_step: Mapping[str, float]) -> None:
        """Where the time of a build went."""
        for step, seconds in seconds_by_step.items():
            self._distributions[table.BLEND_STEP].observe(seconds, (step if step in _BLEND_STEPS else OTHER,))

    def blend_evicted(self) -> None:
        """A blend left the memory for another."""
        self._values[table.BLEND_EVICTIONS].add()

    def blends_kept(self, count: int, size_bytes: int) -> None:
        """How many blends are in memory now, and how large they are together."""
        self._values[table.BLENDS].put(float(count))
        self._values[table.BLEND_BYTES].put(float(size_bytes))

    def registry_read(self) -> None:
        """The registry answered a look for changes."""
        self._values[table.REGISTRY_READ].put(self._wall_clock())
        self._registry_read_at = self._clock()

    @property
    def registry_staleness_s(self) -> float:
        """Seconds since the registry last answered a look for changes."""
        return self._clock() - self._registry_read_at

    def child_is_kept(self, process: str) -> None:
        """A child process is spoken to from now on: its number is there from zero on."""
        self._values[table.MESSAGES_UNKNOWN].add((process,), 0.0)

    def child_not_understood(self, process: str) -> None:
        """A child process said something that is no message."""
        self._values[table.MESSAGES_UNKNOWN].add((process,))

    def loop_started(self, name: str) -> None:
        """A background loop begins: its numbers are there from zero on."""
        self._values[table.LOOP_UP].put(1.0, (name,))
        self._values[table.LOOP_FAILURES].add((name,), 0.0)

    def loop_failed(self, name: str, *, is_down: bool) -> None:
        """A background loop ended by an error, and is down until `loop_up` where it is one that runs for ever."""
        self._values[table.LOOP_UP].put(0.0 if is_down else 1.0, (name,))
        self._values[table.LOOP_FAILURES].add((name,))

    def loop_up(self, name: str) -> None:
        """A background loop has run for a while."""
        self._values[table.LOOP_UP].put(1.0, (name,))

    def scrape(self, state: ServerState) -> Scrape:
        """A copy of everything as it is now, with ``state``; `Scrape.text` renders it, in any thread."""
        self._note(state)
        return Scrape(
            [*(v.frozen() for v in self._values.values()), *(d.frozen() for d in self._distributions.values())]
        )

    def engine_page(self, specs: Sequence[MetricSpec]) -> Scrape:
        """A copy of the families of ``specs`` as they are now."""
        known: Mapping[MetricSpec, Values | Distribution] = {**self._values, **self._distributions}
        return Scrape([known[spec].frozen() for spec in specs])

    def _note(self, state: ServerState) -> None:
        numbers: dict[MetricSpec, float] = {
            table.ENGINE_READY: state.engine_ready,
            table.ENGINE_RESTARTS: state.engine_restarts,
            table.ARTIFACTS_DAMAGED: state.artifacts_damaged,
            table.ADAPTER_CAPACITY: state.capacity,
            table.ADAPTER_SLOTS: state.slots,
            table.REGISTRY_REVISION: state.revision,
            table.REGISTRY_UP: state.registry_up,
            table.REGISTRY_NOTICES: state.registry_notices,
            table.REGISTRY_STALENESS: self.registry_staleness_s,
            table.WORKER_UP: state.worker_alive,
            table.WORKER_RESTARTS: state.worker_restarts,
            table.BLENDER_UP: state.blender_alive,
            table.BLENDER_RESTARTS: state.blender_restarts,
        }
        for spec, number in numbers.items():
            self._values[spec].put(float(number))
        tiers = {"registered": state.registered, "resident": state.resident, "pinned": state.pinned, "held": state.held}
        for spec, rows in ((table.ADAPTER_VERSIONS, tiers), (table.ENGINE_START, state.engine_start_s)):
            self._values[spec].clear()
            for label, number in rows.items():
                self._values[spec].put(number, (label,))
        self._values[table.JOBS].clear()
        for labels, count in (state.live_jobs or {}).items():
            self._values[table.JOBS].put(float(count), labels)
