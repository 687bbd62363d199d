"""What gateways in front of several servers choose by: vLLM's names for which adapters are here, and who asks for them.

Adapters are listed under every name that clients send. What left the memory, or was deleted, is gone from the page.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from amalgam.telemetry.metric_spec import MetricSpec
from amalgam.telemetry.series import Labels, Values

Level = Literal["gpu", "cpu"]
_ENGINE: Final = "0"
"""vLLM counts engines behind one address so."""

ADAPTER_LOADED: Final = MetricSpec(
    "vllm:lora_adapter_loaded",
    "gauge",
    "1 for each adapter in the engine's memory, by every name that requests may give it; level gpu: it has a place in "
    "the batch, cpu: it is given one first; rank is the adapter's",
    ("model_name", "engine", "adapter_name", "level", "pinned", "rank"),
)
ADAPTERS_LOADED: Final = MetricSpec(
    "vllm:num_gpu_loaded_lora_adapters", "gauge", "Adapters that have a place in the batch", ("model_name", "engine")
)
ADAPTER_PLACES: Final = MetricSpec(
    "vllm:max_gpu_lora_adapters", "gauge", "Places for different adapters in the batch", ("model_name", "engine")
)
REQUESTS_INFO: Final = MetricSpec(
    "vllm:lora_requests_info",
    "gauge",
    "Unix seconds of this look; names that requests give adapters, of those that run and of those that wait",
    ("max_lora", "waiting_lora_adapters", "running_lora_adapters"),
)
GATEWAY_METRICS: Final = (ADAPTER_LOADED, ADAPTERS_LOADED, ADAPTER_PLACES, REQUESTS_INFO)


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """One adapter in the engine's memory."""

    names: Sequence[str]
    """A request may give it these."""
    level: Level
    pinned: bool
    rank: int


@dataclass(frozen=True, slots=True)
class GatewayView:
    """One look at a server."""

    base: str
    """It is the name of the base model."""
    places: int
    """So many places in the batch are for different adapters."""
    loaded: Sequence[LoadedAdapter]
    running: Collection[str]
    """Requests that are being answered gave adapters these names."""
    waiting: Collection[str]

    def series(self, now_s: float) -> list[Values]:
        """As Prometheus' families.

        Args:
            now_s: Unix seconds.
        """
        engine = (self.base, _ENGINE)
        loaded: dict[Labels, float] = {
            (*engine, name, one.level, "true" if one.pinned else "false", str(one.rank)): 1.0
            for one in self.loaded
            for name in one.names
        }
        in_batch = sum(one.level == "gpu" for one in self.loaded)
        asked = (str(self.places), ",".join(sorted(self.waiting)), ",".join(sorted(self.running)))
        return [
            Values(ADAPTER_LOADED, loaded),
            Values(ADAPTERS_LOADED, {engine: float(in_batch)}),
            Values(ADAPTER_PLACES, {engine: float(self.places)}),
            Values(REQUESTS_INFO, {asked: now_s}),
        ]
