"""What is counted, what a page says, and that neither names nor gauges run away."""

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from amalgam.telemetry import metric_table as table
from amalgam.telemetry.context import RequestContext
from amalgam.telemetry.metric_spec import MetricSpec
from amalgam.telemetry.metric_table import METRICS
from amalgam.telemetry.metrics import MAX_ADAPTER_LABELS, MAX_ALIAS_PAIRS, Metrics, TokenUsage
from amalgam.telemetry.request_watch import SAME_STEP_S, RequestWatch
from amalgam.telemetry.server_state import ServerState

TOKEN = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
BROKEN = b'data: {"error":{"message":"x"}}\n\n'


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def samples(metrics: Metrics, state: ServerState | None = None) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = metrics.scrape(state or ServerState()).text(CollectorRegistry()).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics).get((name, frozenset(labels.items())))


def stream(metrics: Metrics, clock: Clock, gaps_s: list[float], endpoint: str = "chat_completions") -> RequestWatch:
    watch = metrics.begin(endpoint, RequestContext("r", "sql@1"))
    watch.status = 200
    for gap_s in gaps_s:
        clock.now += gap_s
        watch.part(TOKEN, True)
    return watch


def end(metrics: Metrics, watch: RequestWatch, usage: TokenUsage | None = None, **how: bool) -> int:
    code = watch.code(failed=how.get("failed", False), left=how.get("left", False))
    metrics.end(watch, code, watch.seconds(), usage)
    return code


def test_a_stream_is_counted_once_with_its_tokens_and_latencies() -> None:
    clock = Clock()
    metrics = Metrics(clock)
    watch = stream(metrics, clock, [0.2, 0.04, 0.06])
    watch.part(DONE, True)
    clock.now += 0.1
    watch.part(b"", False)
    assert end(metrics, watch, TokenUsage(11, 3)) == 200
    assert value(metrics, "amalgam_requests_total", endpoint="chat_completions", adapter="sql@1", code="200") == 1
    assert value(metrics, "amalgam_prompt_tokens_total", adapter="sql@1") == 11
    assert value(metrics, "amalgam_completion_tokens_total", adapter="sql@1") == 3
    assert value(metrics, "amalgam_time_to_first_token_seconds_sum", adapter="sql@1") == pytest.approx(0.2)
    assert value(metrics, "amalgam_inter_token_seconds_count", adapter="sql@1") == 2
    assert value(metrics, "amalgam_inter_token_seconds_sum", adapter="sql@1") == pytest.approx(0.1)
    assert value(metrics, "amalgam_inter_token_seconds_bucket", adapter="sql@1", le="0.05") == 1
    assert value(metrics, "amalgam_request_duration_seconds_sum", endpoint="chat_completions", adapter="sql@1") == (
        pytest.approx(0.4)
    )
    assert value(metrics, "amalgam_requests_running", endpoint="chat_completions") == 0


def test_parts_of_one_engine_step_are_one_token_and_no_gap() -> None:
    clock = Clock()
    metrics = Metrics(clock)
    # The role and the first token, a second token, and the usage right behind it.
    watch = stream(metrics, clock, [0.2, SAME_STEP_S / 5, 0.05, SAME_STEP_S / 5])
    assert (watch.steps, sum(watch.gap_counts or [])) == (2, 1)


def test_without_streaming_the_first_token_is_the_whole_answer() -> None:
    clock = Clock()
    metrics = Metrics(clock)
    watch = metrics.begin("completions", RequestContext("r", "base"))
    watch.status = 200
    clock.now += 1.5
    watch.part(b'{"choices":[]}', False)
    assert end(metrics, watch, TokenUsage(4, 2)) == 200
    assert value(metrics, "amalgam_time_to_first_token_seconds_sum", adapter="base") == 1.5
    assert value(metrics, "amalgam_inter_token_seconds_count", adapter="base") is None


def test_a_client_that_leaves_a_stream_counts_as_499_with_what_it_got() -> None:
    clock = Clock()
    metrics = Metrics(clock)
    watch = stream(metrics, clock, [0.2, 0.05, 0.05])
    assert end(metrics, watch) == 499
    assert value(metrics, "amalgam_requests_total", endpoint="chat_completions", adapter="sql@1", code="499") == 1
    assert value(metrics, "amalgam_completion_tokens_total", adapter="sql@1") == 3
    assert value(metrics, "amalgam_prompt_tokens_total", adapter="sql@1") is None
    assert value(metrics, "amalgam_requests_running", endpoint="chat_completions") == 0


def test_a_stream_that_tells_of_an_error_counts_as_500_though_it_began_with_200() -> None:
    clock = Clock()
    metrics = Metrics(clock)
    watch = stream(metrics, clock, [0.2])
    watch.part(BROKEN, True)
    watch.part(DONE, True)
    watch.part(b"", False)
    assert end(metrics, watch) == 500


@pytest.mark.parametrize(
    ("status", "finished", "failed", "left", "code"),
    [(0, False, True, False, 500), (0, False, True, True, 499), (0, False, False, False, 500),
     (200, False, True, False, 500), (404, True, False, False, 404), (200, True, True, False, 200)],
)  # fmt: skip
def test_every_way_to_end_has_one_code(status: int, finished: bool, failed: bool, left: bool, code: int) -> None:
    watch = Metrics().begin("completions", RequestContext("r"))
    watch.status = status
    if finished:
        watch.part(b"{}", False)
    assert watch.code(failed=failed, left=left) == code


def test_other_dialects_count_what_they_call_a_token() -> None:
    clock = Clock()
    metrics = Metrics(clock)
    watch = metrics.begin("responses", RequestContext("r", "sql@1"))
    watch.part(b'event: response.created\ndata: {"type":"response.created"}\n\n', True)
    assert watch.first_s is None
    clock.now += 0.3
    watch.part(b'event: response.output_text.delta\ndata: {"delta":"a"}\n\n', True)
    assert watch.first_s == pytest.approx(0.3)
    watch = metrics.begin("messages", RequestContext("r", "sql@1"))
    watch.part(b"event: content_block_delta\ndata: {}\n\n", True)
    assert watch.steps == 1


def test_adapter_labels_are_capped_and_places_come_free_again() -> None:
    metrics = Metrics()
    for number in range(MAX_ADAPTER_LABELS + 5):
        watch = metrics.begin("completions", RequestContext("r", f"a@{number}"))
        watch.status = 200
        watch.part(b"{}", False)
        end(metrics, watch)
    requests = [key for key in samples(metrics) if key[0] == "amalgam_requests_total"]
    assert len(requests) == MAX_ADAPTER_LABELS + 1
    assert value(metrics, "amalgam_requests_total", endpoint="completions", adapter="other", code="200") == 5
    metrics.make_room({f"a@{number}" for number in range(10)})
    assert metrics.adapter_label("new@1") == "new@1"
    kept = {dict(key[1])["adapter"] for key in samples(metrics) if key[0] == "amalgam_requests_total"}
    assert kept == {f"a@{number}" for number in range(10)} | {"other"}


def answered(metrics: Metrics, alias: str, adapter: str) -> None:
    watch = metrics.begin("completions", RequestContext("r", adapter, alias))
    watch.status = 200
    watch.part(b"{}", False)
    end(metrics, watch)


def test_pairs_of_alias_and_version_are_capped_and_places_come_free_again() -> None:
    metrics = Metrics()
    for number in range(MAX_ALIAS_PAIRS + 5):
        answered(metrics, f"alias-{number % 5}", f"a@{number // 5}")
    counted = [key for key in samples(metrics) if key[0] == "amalgam_alias_requests_total"]
    assert len(counted) == MAX_ALIAS_PAIRS + 1
    assert value(metrics, "amalgam_alias_requests_total", alias="other", adapter="other", code="200") == 5
    assert value(metrics, "amalgam_alias_request_duration_seconds_count", alias="other", adapter="other") == 5
    metrics.make_room({"a@0", "a@1"}, {"alias-0"})
    kept = {
        (dict(key[1])["alias"], dict(key[1])["adapter"])
        for key in samples(metrics)
        if key[0] == "amalgam_alias_requests_total"
    }
    assert kept == {("alias-0", "a@0"), ("alias-0", "a@1"), ("other", "other")}
    # The versions' own numbers are full later than the pairs, and stay.
    assert value(metrics, "amalgam_requests_total", endpoint="completions", adapter="a@9", code="200") == 5
    answered(metrics, "new", "a@0")
    assert value(metrics, "amalgam_alias_requests_total", alias="new", adapter="a@0", code="200") == 1


def test_who_named_no_alias_counts_for_none() -> None:
    metrics = Metrics()
    watch = metrics.begin("completions", RequestContext("r", "sql@1"))
    end(metrics, watch)
    assert not [key for key in samples(metrics) if key[0].startswith("amalgam_alias")]


def test_nothing_is_forgotten_before_the_labels_are_full() -> None:
    metrics = Metrics()
    answered(metrics, "", "gone@1")
    metrics.make_room(set())
    assert value(metrics, "amalgam_requests_total", endpoint="completions", adapter="gone@1", code="200") == 1


def test_the_page_parses_and_no_family_stands_twice() -> None:
    metrics = Metrics(build=("1", "2", "3"))
    metrics.adapter_loaded(0.3)
    metrics.adapter_loaded(None)
    metrics.job_ended("merge", "published", {"read": 0.1, "no such step": 1.0})
    metrics.end_http("GET", "/metrics", 200)
    beside = CollectorRegistry()
    Counter("vllm:tokens", "of the engine", registry=beside).inc()
    state = ServerState(engine_ready=True, resident=3, live_jobs={("merge", "queued"): 2}, engine_start_s={"load": 9.5})
    families = list(text_string_to_metric_families(metrics.scrape(state).text(beside).decode()))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    ours = {spec.name.removesuffix("_total") for spec in METRICS}
    assert ours <= set(names)
    assert {family.name for family in families if not family.documentation} == set()
    assert value(metrics, "amalgam_job_step_seconds_count", kind="merge", step="other") == 1


def test_gauges_of_a_scrape_do_not_outlive_it() -> None:
    metrics = Metrics()
    assert (
        samples(metrics, ServerState(live_jobs={("merge", "queued"): 2}))[
            ("amalgam_jobs", frozenset({("kind", "merge"), ("state", "queued")}))
        ]
        == 2
    )
    after = samples(metrics, ServerState(live_jobs=None))
    assert not [key for key in after if key[0] == "amalgam_jobs"]
    assert after[("amalgam_registry_up", frozenset())] == 0


def test_staleness_counts_from_the_last_look_that_was_answered_and_by_a_steady_clock() -> None:
    now, wall = [100.0], [5e8]
    metrics = Metrics(clock=lambda: now[0], wall_clock=lambda: wall[0])
    now[0] += 7
    wall[0] += 1e6
    assert value(metrics, "amalgam_registry_staleness_seconds") == 7
    metrics.registry_read()
    now[0] += 3
    assert value(metrics, "amalgam_registry_staleness_seconds") == 3


def test_waiting_ends_when_the_wait_fails() -> None:
    metrics = Metrics()

    def wait() -> None:
        with metrics.adapter_waiting():
            assert value(metrics, "amalgam_adapter_waiting_requests") == 1
            raise TimeoutError

    with pytest.raises(TimeoutError):
        wait()
    assert value(metrics, "amalgam_adapter_waiting_requests") == 0


def test_names_follow_the_conventions() -> None:
    for spec in METRICS:
        assert spec.name.startswith("amalgam_")
        assert (spec.kind == "counter") == spec.name.endswith("_total")
        assert (spec.kind == "histogram") == bool(spec.bounds)
        assert list(spec.bounds) == sorted(set(spec.bounds))
        assert spec.help
        assert len({other.name for other in METRICS}) == len(METRICS)
    declared = {spec.name for spec in vars(table).values() if isinstance(spec, MetricSpec)}
    assert declared == {spec.name for spec in METRICS}
