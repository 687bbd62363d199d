"""vLLM's own metrics, as far as we keep them from growing."""

from typing import Any, Final

from prometheus_client import REGISTRY, CollectorRegistry

from amalgam.engine.cpu import patches

COMBINATIONS: Final = "vllm:lora_requests_info"
"""It is vLLM 0.32's gauge with a series for every combination of adapters that were ever in a batch together, waiting
or running: clients make as many as they like, none of them goes, and each scrape writes them all. Which adapters are
asked for, loaded and waited for is told by metrics of ours, with bounded labels."""


def drop_combinations(loggers: Any, registry: CollectorRegistry = REGISTRY) -> None:
    """Have vLLM not record the gauge, and take it from the page.

    Args:
        loggers: vLLM's manager of what is told of each step; None where it tells nothing.
        registry: where vLLM registered its metrics.
    """
    for logger in () if loggers is None else loggers.stat_loggers:
        gauge = getattr(logger, "gauge_lora_info", None)
        if gauge is None:
            continue
        patches.put("vllm.v1.metrics.loggers:PrometheusStatLogger.gauge_lora_info", None, on=logger)
        registry.unregister(gauge)
