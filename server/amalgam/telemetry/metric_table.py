"""Every metric of ours: its name, what it says, its labels, and the bounds of its histogram.

Units are in the names: seconds, Unix seconds for timestamps, plain counts elsewhere. The label ``adapter`` holds the
exact version (``sql@3``), the base model's served name, ``blend`` for all blends together, ``none`` where a request
never came to a version, or ``other`` beyond the limit of `amalgam.telemetry.metrics`. The label ``alias`` holds the
alias that a request named; it too is ``other`` beyond a limit. No label holds anything a client wrote.
"""

from typing import Final

from amalgam.telemetry.metric_spec import MetricSpec, counter, gauge, histogram

_LATENCY_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_FIRST_TOKEN_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_INTER_TOKEN_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_LOAD_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_STEP_S: Final = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)
_STALL_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SHARES: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
_JOB_S: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)


REQUESTS: Final = counter(
    "amalgam_requests_total",
    "Inference requests that ended, by endpoint, adapter version and HTTP status; 499: the client left; "
    "a stream that breaks after its first byte counts as 500",
    "endpoint",
    "adapter",
    "code",
)
REQUEST_SECONDS: Final = histogram(
    "amalgam_request_duration_seconds",
    "Seconds from a request's arrival to the last byte of its answer",
    _LATENCY_S,
    "endpoint",
    "adapter",
)
RUNNING: Final = gauge("amalgam_requests_running", "Inference requests being answered", "endpoint")
ADMITTED: Final = gauge(
    "amalgam_requests_admitted", "Inference requests in progress: waiting for a place in the batch, or running"
)
ADMISSION_BOUND: Final = gauge(
    "amalgam_requests_admitted_bound", "Inference requests that may be in progress; more are refused"
)
REFUSALS: Final = (
    *("key_share", "tenant_share", "adapter_share", "server_full", "deadline", "no_turn"),
    *("rate_limit", "budget", "limit_exceeded"),
)
REFUSED: Final = counter(
    "amalgam_requests_refused_total",
    "Inference requests refused for load, by reason: key_share, tenant_share, adapter_share, server_full, deadline, "
    "no_turn; or for limits: rate_limit, budget, limit_exceeded",
    "reason",
)
FIRST_TOKEN: Final = histogram(
    "amalgam_time_to_first_token_seconds",
    "Seconds from a request's arrival to its first token; without streaming, to its whole answer",
    _FIRST_TOKEN_S,
    "adapter",
)
INTER_TOKEN: Final = histogram(
    "amalgam_inter_token_seconds", "Seconds between the tokens of a stream", _INTER_TOKEN_S, "adapter"
)
PROMPT_TOKENS: Final = counter(
    "amalgam_prompt_tokens_total", "Prompt tokens of requests that were answered to their end", "adapter"
)
COMPLETION_TOKENS: Final = counter(
    "amalgam_completion_tokens_total", "Tokens generated; a stream that broke off counts its parts", "adapter"
)
ALIAS_REQUESTS: Final = counter(
    "amalgam_alias_requests_total",
    "Inference requests that named an alias and ended, by alias, the version that was drawn for them and HTTP status",
    "alias",
    "adapter",
    "code",
)
ALIAS_ROUTES: Final = counter(
    "amalgam_alias_routes_total",
    "Inference requests whose target a router chose and that ended, by alias, the version that was chosen and why",
    "alias",
    "adapter",
    "reason",
)
ALIAS_SECONDS: Final = histogram(
    "amalgam_alias_request_duration_seconds",
    "Seconds from the arrival of a request that named an alias to the last byte of its answer",
    _LATENCY_S,
    "alias",
    "adapter",
)
TENANT_REQUESTS: Final = counter(
    "amalgam_tenant_requests_total",
    "Inference requests that came to a version and ended, by tenant and HTTP status; other beyond 256 tenants",
    "tenant",
    "code",
)
TENANT_TOKENS: Final = counter(
    "amalgam_tenant_tokens_total",
    "Tokens that the engine worked on, by tenant and kind: prompt, completion; other beyond 256 tenants",
    "tenant",
    "kind",
)
TENANT_REFUSED: Final = counter(
    "amalgam_tenant_requests_refused_total",
    "Inference requests refused for load or for limits, by tenant and reason; other beyond 256 tenants",
    "tenant",
    "reason",
)
TENANT_STORED: Final = gauge(
    "amalgam_tenant_stored_bytes",
    "Bytes that a tenant has stored, by kind: adapters, files; looked at every five minutes; other beyond 256 tenants",
    "tenant",
    "kind",
)
TENANT_STORED_LIMIT: Final = gauge(
    "amalgam_tenant_stored_bytes_limit", "Bytes that a tenant may store, where a limit says so", "tenant"
)
FEEDBACK: Final = counter("amalgam_feedback_total", "Feedback that clients gave, by result: taken, repeated", "result")
ANSWERS_DROPPED: Final = counter(
    "amalgam_answers_dropped_total", "Answers that cannot be judged, because more ended than could be written"
)
EXPERIMENTS: Final = gauge("amalgam_experiments", "Experiments that run, as the registry said last")
EXPERIMENTS_ENDED: Final = counter(
    "amalgam_experiments_ended_total",
    "Experiments that this server ended, by verdict: better, worse, not_better, undecided, guard_errors, "
    "guard_latency, stopped",
    "verdict",
)
EXPERIMENT_OUTCOMES: Final = gauge(
    "amalgam_experiment_outcomes",
    "Feedback that counts in a running experiment, by alias and target",
    "alias",
    "adapter",
)
EXPERIMENT_MEAN: Final = gauge(
    "amalgam_experiment_mean", "Mean of that feedback, 0 to 1, by alias and target", "alias", "adapter"
)
EXPERIMENT_ERRORS: Final = gauge(
    "amalgam_experiment_errors", "Requests that the server did not answer in a running experiment", "alias", "adapter"
)
SHADOWS: Final = counter(
    "amalgam_shadow_requests_total",
    "Copies of requests for shadows, by result: answered, failed, dropped (too many wait for spare capacity)",
    "result",
)
HTTP_REQUESTS: Final = counter(
    "amalgam_http_requests_total",
    "Requests other than inference that ended, by method, route template and HTTP status",
    "method",
    "route",
    "code",
)

CONNECTIONS_CUT: Final = counter(
    "amalgam_connections_cut_total",
    "Connections that the server ended, by reason: handshake (of TLS, without an end), head (headers that do not "
    "arrive, or too many requests at once), body (it stalled), answer (nobody reads it), idle (its place was needed), "
    "busy (no place was left: probes only, or nothing)",
    "reason",
)
LOOP_LATE: Final = histogram(
    "amalgam_event_loop_late_seconds",
    "Seconds by which the event loop woke a task too late, watched every 25 ms; what stops it stops every stream",
    _STALL_S,
)
LOOP_BUSY: Final = histogram(
    "amalgam_event_loop_busy_seconds",
    "Processor seconds that the event loop's thread worked between two of these looks",
    _STALL_S,
)

FIELDS_IGNORED: Final = counter(
    "amalgam_fields_ignored_total",
    "Fields of inference requests that were taken without effect, by endpoint and field; other: not in the table",
    "endpoint",
    "field",
)

ADAPTER_VERSIONS: Final = gauge(
    "amalgam_adapter_versions",
    "Adapter versions by tier: registered can be served, resident are in the engine's memory, pinned stay there, "
    "held are in use by a request",
    "tier",
)
ADAPTER_CAPACITY: Final = gauge("amalgam_adapter_capacity", "Adapter versions that the engine's memory has places for")
ADAPTER_SLOTS: Final = gauge("amalgam_adapter_slots", "Different adapters that one batch of the engine may hold")
ADAPTER_WAITING: Final = gauge(
    "amalgam_adapter_waiting_requests", "Requests that wait for a place in the engine's memory for their adapter"
)
TURN_WAITING: Final = gauge(
    "amalgam_adapter_turn_waiting_requests",
    "Requests that wait for a place in the batch, for their key's turn or for their adapter's",
)
TURN_WAIT: Final = histogram(
    "amalgam_adapter_turn_wait_seconds",
    "Seconds that requests waited for a place in the batch; those that began at once are not counted",
    _LATENCY_S,
)
ADAPTER_LOAD: Final = histogram(
    "amalgam_adapter_load_seconds", "Seconds that loads of adapters into the engine took", _LOAD_S
)
LOAD_FAILURES: Final = counter("amalgam_adapter_load_failures_total", "Loads of adapters that the engine refused")
EVICTIONS: Final = counter(
    "amalgam_adapter_evictions_total", "Adapters taken out of the engine's memory to free it for others"
)
ARTIFACTS_DAMAGED: Final = counter(
    "amalgam_artifacts_damaged_total", "Stored adapters whose files were found damaged or missing; they are not served"
)

REGISTRY_UP: Final = gauge("amalgam_registry_up", "1 where the registry answered the last look at its jobs")
REGISTRY_REVISION: Final = gauge(
    "amalgam_registry_revision", "Revision of the registry that requests are resolved against"
)
REGISTRY_READ: Final = gauge(
    "amalgam_registry_last_read_timestamp_seconds", "Unix seconds of the last successful look at the registry"
)
REGISTRY_STALENESS: Final = gauge(
    "amalgam_registry_staleness_seconds", "Seconds since the last successful look at the registry, by a steady clock"
)

REGISTRY_NOTICES: Final = gauge(
    "amalgam_registry_notices_up",
    "1 where changes by other servers are heard of as they are committed, 0 where they are looked for every second",
)

JOBS: Final = gauge(
    "amalgam_jobs",
    "Jobs of this registry that are queued or under way, by kind (merge, export, evaluation, sweep, batch) and state; "
    "as counted last",
    "kind",
    "state",
)
JOBS_FINISHED: Final = counter(
    "amalgam_jobs_finished_total", "Jobs that this server saw end, by kind and final state", "kind", "state"
)
JOB_STEP: Final = histogram(
    "amalgam_job_step_seconds",
    "Seconds by step: of published merges and exports, and of evaluations and sweeps from their last start on",
    _JOB_S,
    "kind",
    "step",
)
MERGE_KEPT: Final = histogram(
    "amalgam_merge_kept_ratio",
    "Share that merges keep of the input that they keep least, of those that were measured before they were published",
    _SHARES,
)
WORKER_UP: Final = gauge("amalgam_worker_up", "1 while the merge worker runs")
WORKER_RESTARTS: Final = counter("amalgam_worker_restarts_total", "Times the merge worker ended and was started again")

BLENDS: Final = gauge("amalgam_blends", "Blends in memory, built or being built")
BLEND_BYTES: Final = gauge("amalgam_blend_bytes", "Bytes of blends in memory, with what is set aside for those to come")
BLENDS_BUILT: Final = counter("amalgam_blends_built_total", "Blends built")
BLEND_FAILURES: Final = counter("amalgam_blend_failures_total", "Blends that were refused or failed while being built")
BLEND_EVICTIONS: Final = counter("amalgam_blend_evictions_total", "Blends taken out of memory to free it for others")
BLEND_BUILD: Final = histogram(
    "amalgam_blend_build_seconds", "Seconds from a new blend's request until its files were there", _LOAD_S
)
BLEND_STEP: Final = histogram(
    "amalgam_blend_step_seconds",
    "Seconds of built blends by step: parse the expression, wait for memory and for the process, read, merge, write",
    _STEP_S,
    "step",
)
BLENDER_UP: Final = gauge("amalgam_blender_up", "1 while the blend process runs")
BLENDER_RESTARTS: Final = counter(
    "amalgam_blender_restarts_total", "Times the blend process ended and was started again"
)

EVALUATION_CALLS: Final = counter(
    "amalgam_evaluation_calls_total",
    "Items that evaluations and sweeps asked of a target: measured, or refused",
    "kind",
    "outcome",
)
BATCH_LINES: Final = counter(
    "amalgam_batch_lines_total", "Lines of batches that were asked: answered, or refused", "outcome"
)

LOOP_UP: Final = gauge(
    "amalgam_loop_up", "0 from the failure of a background loop until it has run for a while again", "loop"
)
LOOP_FAILURES: Final = counter(
    "amalgam_loop_failures_total", "Times a background loop ended by an error and was started again", "loop"
)
MESSAGES_UNKNOWN: Final = counter(
    "amalgam_messages_unknown_total", "Lines of a child process that were no message and were left out", "process"
)

ENGINE_READY: Final = gauge("amalgam_engine_ready", "1 while the engine answers")
ENGINE_RESTARTS: Final = counter(
    "amalgam_engine_restarts_total", "Times the engine was restarted because its core died, hung or gave NaN"
)
NOT_FINITE: Final = counter(
    "amalgam_non_finite_answers_total",
    "Times that an adapter or the base model gave values that are not finite; the engine is restarted after each",
    "adapter",
)
ENGINE_START: Final = gauge("amalgam_engine_start_seconds", "Seconds of the engine's last start, by phase", "phase")
BUILD: Final = gauge(
    "amalgam_build_info", "1; the versions of this server, of vLLM and of Python are its labels", "version", "vllm",
    "python",
)  # fmt: skip

METRICS: Final[tuple[MetricSpec, ...]] = (
    REQUESTS,
    REQUEST_SECONDS,
    RUNNING,
    ADMITTED,
    ADMISSION_BOUND,
    REFUSED,
    FIRST_TOKEN,
    INTER_TOKEN,
    PROMPT_TOKENS,
    COMPLETION_TOKENS,
    ALIAS_REQUESTS,
    ALIAS_ROUTES,
    ALIAS_SECONDS,
    TENANT_REQUESTS,
    TENANT_TOKENS,
    TENANT_REFUSED,
    TENANT_STORED,
    TENANT_STORED_LIMIT,
    FEEDBACK,
    ANSWERS_DROPPED,
    EXPERIMENTS,
    EXPERIMENTS_ENDED,
    EXPERIMENT_OUTCOMES,
    EXPERIMENT_MEAN,
    EXPERIMENT_ERRORS,
    SHADOWS,
    HTTP_REQUESTS,
    CONNECTIONS_CUT,
    LOOP_LATE,
    LOOP_BUSY,
    FIELDS_IGNORED,
    ADAPTER_VERSIONS,
    ADAPTER_CAPACITY,
    ADAPTER_SLOTS,
    ADAPTER_WAITING,
    TURN_WAITING,
    TURN_WAIT,
    ADAPTER_LOAD,
    LOAD_FAILURES,
    EVICTIONS,
    ARTIFACTS_DAMAGED,
    REGISTRY_UP,
    REGISTRY_REVISION,
    REGISTRY_READ,
    REGISTRY_STALENESS,
    REGISTRY_NOTICES,
    JOBS,
    JOBS_FINISHED,
    JOB_STEP,
    MERGE_KEPT,
    WORKER_UP,
    WORKER_RESTARTS,
    BLENDS,
    BLEND_BYTES,
    BLENDS_BUILT,
    BLEND_FAILURES,
    BLEND_EVICTIONS,
    BLEND_BUILD,
    BLEND_STEP,
    BLENDER_UP,
    BLENDER_RESTARTS,
    EVALUATION_CALLS,
    BATCH_LINES,
    LOOP_UP,
    LOOP_FAILURES,
    MESSAGES_UNKNOWN,
    ENGINE_READY,
    ENGINE_RESTARTS,
    NOT_FINITE,
    ENGINE_START,
    BUILD,
)
"""It has all of them, in the order of the page."""

COUNTED_BY_ENGINES: Final[tuple[MetricSpec, ...]] = (
    ADAPTER_WAITING,
    TURN_WAITING,
    TURN_WAIT,
    ADAPTER_LOAD,
    LOAD_FAILURES,
    EVICTIONS,
    BLENDS,
    BLEND_BYTES,
    BLENDS_BUILT,
    BLEND_FAILURES,
    BLEND_EVICTIONS,
    BLEND_BUILD,
    BLEND_STEP,
    NOT_FINITE,
)
"""An engine in a process of its own counts these, in place of the servers in front of it."""
