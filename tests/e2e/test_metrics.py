"""The metrics page of a real run, read by promtool and by a real Prometheus that the dashboard and the rules ask."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import RunningServer
from tests.e2e.prometheus import DEPLOY, INSTALLED, MISSING, Prometheus, dashboard_queries, metrics_named_in, scraping

QUESTION: Any = [{"role": "user", "content": "Say hello."}]
needs_prometheus = pytest.mark.skipif(not INSTALLED, reason=MISSING)

VLLM_LINTS = {"metric names should not contain ':'", 'non-counter metrics should not have "_total" suffix'}
"""What promtool holds against vLLM's own names; against ours it has nothing to say."""

MAY_BE_EMPTY = {
    *("Share of failures by adapter", "Refusals by tenant and reason", "Stored bytes by tenant"),
    *("Outcomes by alias and target", "Mean outcome by alias and target", "Errors in experiments"),
    "Feedback, ends and shadows",
}
"""Panels without data where nothing has gone wrong and no experiment runs, or of what is looked at every five minutes
alone."""


def page(server: RunningServer) -> str:
    return httpx.get(f"{server.url}/metrics", timeout=30).text


def numbers(server: RunningServer, name: str) -> dict[frozenset[tuple[str, str]], float]:
    return {
        frozenset(sample.labels.items()): sample.value
        for family in text_string_to_metric_families(page(server))
        for sample in family.samples
        if sample.name == name
    }


def number(server: RunningServer, name: str, **labels: str) -> float:
    return numbers(server, name).get(frozenset(labels.items()), 0.0)


@pytest.mark.parametrize("stream", [False, True])
def test_each_dialect_counts_its_adapter_its_tokens_and_its_times(
    server: RunningServer, client: openai.OpenAI, stream: bool
) -> None:
    def counts() -> dict[str, float]:
        return {
            name: number(server, name, adapter="sql@1")
            for name in (
                "amalgam_prompt_tokens_total",
                "amalgam_completion_tokens_total",
                "amalgam_time_to_first_token_seconds_count",
                "amalgam_inter_token_seconds_count",
            )
        }

    before = counts()
    known: dict[str, Any] = {"model": "sql", "extra_body": {"ignore_eos": True}}
    answers: list[Any] = [
        client.chat.completions.create(messages=QUESTION, max_tokens=5, stream=stream, **known),
        client.completions.create(prompt="Hello", max_tokens=5, stream=stream, **known),
        client.responses.create(model="sql", input="Say hello.", max_output_tokens=5, stream=stream),
    ]
    if stream:
        for answer in answers:
            assert list(answer)
    after = counts()
    gained = {name: after[name] - before[name] for name in after}
    assert 11 <= gained["amalgam_completion_tokens_total"] <= 15
    assert gained["amalgam_prompt_tokens_total"] > 3
    assert gained["amalgam_time_to_first_token_seconds_count"] == 3
    assert (gained["amalgam_inter_token_seconds_count"] > 0) is stream


def test_an_unknown_model_and_a_wrong_key_are_counted_without_their_words(server: RunningServer) -> None:
    def refused(code: str) -> float:
        return number(server, "amalgam_requests_total", endpoint="completions", adapter="none", code=code)

    before = refused("404"), refused("401")
    body = {"model": "no-such-name-7f3a", "prompt": "x"}
    with server.client() as client:
        assert client.post("/v1/completions", json=body).status_code == 404
    assert httpx.post(f"{server.url}/v1/completions", json=body).status_code == 401
    assert (refused("404"), refused("401")) == (before[0] + 1, before[1] + 1)
    assert "7f3a" not in page(server)


def test_a_client_that_leaves_is_counted_as_499_and_nothing_stays_running(
    server: RunningServer, client: openai.OpenAI
) -> None:
    def left() -> float:
        return number(server, "amalgam_requests_total", endpoint="chat_completions", adapter="json@1", code="499")

    before = left()
    stream = client.chat.completions.create(
        model="json", messages=QUESTION, max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 10
    while left() == before:
        assert time.monotonic() < deadline, "the request is not counted"
        time.sleep(0.1)
    assert left() == before + 1
    assert number(server, "amalgam_requests_running", endpoint="chat_completions") == 0
    assert number(server, "amalgam_adapter_versions", tier="held") == 0


def test_the_page_names_every_family_once(server: RunningServer) -> None:
    names = [family.name for family in text_string_to_metric_families(page(server))]
    assert len(names) == len(set(names))
    assert {"amalgam_requests", "vllm:num_requests_running", "process_resident_memory_bytes"} <= set(names)


@needs_prometheus
def test_promtool_has_nothing_against_our_names(server: RunningServer) -> None:
    checked = subprocess.run(["promtool", "check", "metrics"], input=page(server), capture_output=True, text=True)
    complaints = [line.split(" ", 1) for line in (checked.stderr + checked.stdout).splitlines() if line]
    assert {complaint for name, complaint in complaints if name.startswith("vllm:")} <= VLLM_LINTS
    assert [line for line in complaints if not line[0].startswith("vllm:")] == []


@needs_prometheus
@pytest.mark.parametrize("command", [["check", "config", "prometheus.yml"], ["test", "rules", "rules_test.yml"]])
def test_promtool_accepts_configuration_and_rules(command: list[str]) -> None:
    done = subprocess.run(["promtool", *command], cwd=DEPLOY / "prometheus", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def prometheus(standard_server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Scrapes the server while it is used: streams of two adapters and of an alias, and a merge."""
    if not INSTALLED:
        pytest.skip(MISSING)
    server = standard_server
    with scraping(server.url, Path(tmp_path_factory.mktemp("prometheus"))) as running, server.admin() as admin:
        running.wait_for('up{job="amalgam"} == 1')
        alias = {"targets": [{"model": "sql", "weight": 3}, {"model": "json@1", "weight": 1}]}
        assert admin.put("/admin/v1/aliases/measured-too", json=alias).status_code == 201
        for weight in (0.31, 0.32):
            for model in ("sql", "json", "measured-too"):
                body = {"model": model, "prompt": "Hello", "max_tokens": 4, "stream": True, "ignore_eos": True}
                body["user"] = "the same in both rounds"
                assert admin.post("/v1/completions", json=body).status_code == 200
            merge = {"name": "measured", "expression": f"sql + {weight}*json"}
            assert admin.post("/admin/v1/merges", params={"wait_s": 60}, json=merge).status_code == 201
            # Each of the two rounds must be seen by a scrape of its own, so that there is a rate.
            newest = f'timestamp(amalgam_jobs_finished_total{{kind="merge",state="published"}}) > {time.time()}'
            running.wait_for(newest)
        yield running


def test_every_query_of_the_dashboard_answers(prometheus: Prometheus) -> None:
    queries = dashboard_queries()
    assert len(queries) > 30
    empty = {title for title, expression in queries if not prometheus.query(expression)}
    assert empty <= MAY_BE_EMPTY


def test_every_rule_evaluates_and_none_fires_on_a_healthy_server(prometheus: Prometheus) -> None:
    rules = prometheus.rules()
    assert {rule["type"] for rule in rules} == {"alerting", "recording"}
    assert {rule["name"]: rule["lastError"] for rule in rules if rule["health"] != "ok"} == {}
    # Pending may be what other tests do to the server; firing needs minutes.
    assert [rule["name"] for rule in rules if rule.get("state") == "firing"] == []


def test_every_metric_that_dashboard_or_rules_name_is_there(prometheus: Prometheus) -> None:
    expressions = [expression for _, expression in dashboard_queries()]
    expressions += [rule["query"] for rule in prometheus.rules()]
    named = set().union(*(metrics_named_in(expression) for expression in expressions))
    assert len(named) > 30
    # Series of what a healthy server has not seen yet.
    optional = {
        *("adapter:amalgam_requests_total:error_ratio_rate5m", "amalgam_non_finite_answers_total"),
        *("tenant:amalgam_tenant_requests_total:error_ratio_rate5m", "amalgam_tenant_requests_refused_total"),
        *("amalgam_tenant_stored_bytes", "amalgam_tenant_stored_bytes_limit"),
        *("amalgam_experiment_outcomes", "amalgam_experiment_mean", "amalgam_experiment_errors"),
        *("amalgam_feedback_total", "amalgam_shadow_requests_total"),
    }
    assert {name for name in named - optional if not prometheus.query(f"count({name})")} == set()
