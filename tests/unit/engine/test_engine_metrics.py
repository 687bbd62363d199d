"""vLLM's own metrics: what is kept from growing without end."""

from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from amalgam.engine.engine_metrics import COMBINATIONS, drop_combinations


def test_no_series_for_a_combination_of_adapters_is_recorded_or_shown() -> None:
    registry = CollectorRegistry()
    Counter("vllm:prompt_tokens", "kept", registry=registry).inc()
    gauge = Gauge(COMBINATIONS, "dropped", ["running_lora_adapters"], registry=registry)
    gauge.labels("a@1,b@2").set(1)
    logger, other = SimpleNamespace(gauge_lora_info=gauge), SimpleNamespace()
    drop_combinations(SimpleNamespace(stat_loggers=[other, logger]), registry)
    assert logger.gauge_lora_info is None
    page = generate_latest(registry).decode()
    assert COMBINATIONS not in page
    assert "vllm:prompt_tokens_total 1.0" in page
    # A core that is started again brings loggers of its own.
    drop_combinations(SimpleNamespace(stat_loggers=[logger]), registry)
    drop_combinations(None, registry)


def test_vllm_has_the_gauge_under_that_name_and_asks_whether_it_is_there() -> None:
    loggers = pytest.importorskip("vllm.v1.metrics.loggers")
    with open(loggers.__file__) as file:
        source = file.read()
    assert f'name="{COMBINATIONS}"' in source
    assert "if self.gauge_lora_info is not None" in source
