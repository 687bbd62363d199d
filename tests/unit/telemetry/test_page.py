"""Pages of several engines on the page of the server in front of them."""

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from amalgam.telemetry.metric_table import ADAPTER_LOAD, BLENDS_BUILT, COUNTED_BY_ENGINES
from amalgam.telemetry.metrics import Metrics
from amalgam.telemetry.server_state import ServerState


def engine_page(load_s: float) -> bytes:
    metrics, beside = Metrics(), CollectorRegistry()
    metrics.adapter_loaded(load_s)
    metrics.blend_built(0.1)
    tokens = Counter("vllm:tokens", "with a { in it", ["model_name"], registry=beside)
    tokens.labels('a "b" {c}').inc(load_s)
    return metrics.engine_page(COUNTED_BY_ENGINES).text(beside)


def test_every_family_stands_once_and_says_whose_it_is() -> None:
    pages = {"r0": engine_page(1.0), "r1": engine_page(2.0)}
    text = Metrics().scrape(ServerState()).text(CollectorRegistry(), pages).decode()
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    found = {
        (sample.name, sample.labels.get("replica"), sample.labels.get("model_name")): sample.value
        for family in families
        for sample in family.samples
    }
    assert found[(BLENDS_BUILT.name, None, None)] == 0, "the server's own"
    assert found[(BLENDS_BUILT.name, "r0", None)] == found[(BLENDS_BUILT.name, "r1", None)] == 1
    assert found[(f"{ADAPTER_LOAD.name}_sum", "r1", None)] == 2.0
    assert found[("vllm:tokens_total", "r0", 'a "b" {c}')] == 1.0


def test_without_engines_elsewhere_a_page_is_as_it_was() -> None:
    scrape = Metrics().scrape(ServerState())
    assert scrape.text(CollectorRegistry()) == scrape.text(CollectorRegistry(), {})
