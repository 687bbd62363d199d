"""Metrics that keep nothing: every call is taken, and one object may be shared by all."""

import inspect
from typing import Any

import pytest

from amalgam.telemetry.context import RequestContext
from amalgam.telemetry.metrics import Metrics
from amalgam.telemetry.no_metrics import NO_METRICS
from amalgam.telemetry.server_state import ServerState

COUNTING = {
    "evaluation_call": (("sweep",), {"refused": False}),
    "batch_line": ((), {"refused": False}),
    "fields_ignored": (("chat_completions", ["x"]), {}),
    "end_http": (("GET", "/x", 200), {}),
    "tenant_used": (("acme", 200, 1, 1), {}),
    "tenants_stored": (([("acme", 1, 1)], {"acme": 5}), {}),
    "adapter_loaded": ((1.0,), {}),
    "answer_not_finite": (("sql@1",), {}),
    "adapter_evicted": ((), {}),
    "turn_waited": ((1.0,), {}),
    "admitted": ((3,), {}),
    "admission_bound": ((3,), {}),
    "refused": (("deadline",), {}),
    "connection_cut": (("head",), {}),
    "job_ended": (("merge", "failed", {"merge": 1.0}), {}),
    "merge_kept": ((0.5,), {}),
    "blend_built": ((1.0,), {}),
    "blend_steps": (({"merge": 1.0},), {}),
    "blend_evicted": ((), {}),
    "blends_kept": ((1, 2), {}),
    "child_is_kept": (("merge_worker",), {}),
    "child_not_understood": (("merge_worker",), {}),
    "loop_started": (("catalog",), {}),
    "loop_failed": (("catalog",), {"is_down": True}),
    "loop_up": (("catalog",), {}),
}


def page() -> list[str]:
    lines = NO_METRICS.scrape(ServerState()).text().decode().splitlines()
    return [line for line in lines if line.startswith("amalgam_")]


@pytest.mark.parametrize("name", COUNTING)
def test_nothing_that_is_counted_is_kept(name: str) -> None:
    positional, named = COUNTING[name]
    before = page()
    getattr(NO_METRICS, name)(*positional, **named)
    assert page() == before
    kept: Any = Metrics()
    empty = kept.scrape(ServerState()).text()
    getattr(kept, name)(*positional, **named)
    assert kept.scrape(ServerState()).text() != empty or name == "child_is_kept"


def test_a_request_and_its_waits_are_taken_too() -> None:
    before = page()
    watch = NO_METRICS.begin("chat_completions", RequestContext("id"))
    with NO_METRICS.adapter_waiting(), NO_METRICS.turn_waiting():
        NO_METRICS.end(watch, 200, 1.0, None)
    assert page() == before
    assert NO_METRICS.running() == 0


def test_no_way_to_count_is_left_out() -> None:
    """A method that is added to `Metrics` gets its line above."""
    reads = {"values", "distribution", "running", "adapter_label", "make_room", "registry_read"}
    pages = {"scrape", "engine_page"}
    spans = {"begin", "end", "adapter_waiting", "turn_waiting"}
    public = {name for name, _ in inspect.getmembers(Metrics, inspect.isfunction) if not name.startswith("_")}
    assert public == COUNTING.keys() | reads | pages | spans
