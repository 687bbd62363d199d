"""On CPU, models with routed experts are served, with LoRA beside their experts and not on them.

With LoRA on, vLLM 0.32 gives experts their Triton kernel whatever the platform, and the first step of a CPU engine ends
in it. Here the experts are told nothing of LoRA, so that they get the platform's own kernel, and are left alone when
LoRA layers are built. Adapters that change experts or their routers are refused before the engine sees them.
"""

import functools
from typing import Any

from amalgam.domain.adapter import ROUTERS


def adapts_experts() -> bool:
    """Whether vLLM puts LoRA on routed experts on this platform."""
    from vllm.platforms import current_platform

    return not current_platform.is_cpu()


def without_lora(original: Any) -> Any:
    """Stands in for `FusedMoEConfig`."""

    @functools.wraps(original, updated=())
    def config(**fields: Any) -> Any:
        return original(**fields | {"is_lora_enabled": False})

    return config


def having_no_experts(original: Any) -> Any:
    """Stands in for `is_moe_model`, by which LoRA's manager prepares for adapters of experts."""

    @functools.wraps(original)
    def is_moe_model(_model: Any) -> bool:
        return False

    return is_moe_model


def but_experts(original: Any) -> Any:
    """Stands in for `is_supported_lora_module`."""
    from vllm.model_executor.layers.fused_moe import MoERunner

    @functools.wraps(original)
    def is_supported(name: str, module: Any, supported: list[str]) -> bool:
        return not isinstance(module, MoERunner) and bool(original(name, module, supported))

    return is_supported


def but_their_names(original: Any) -> Any:
    """Stands in for `get_supported_lora_modules`: without the experts and what routes to them.

    An adapter of these that came this far is an error then, and not left unread.
    """
    from vllm.model_executor.layers.fused_moe import MoERunner

    @functools.wraps(original)
    def names(model: Any) -> list[str]:
        experts = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, MoERunner)}
        left_alone = experts | ROUTERS if experts else experts
        return [name for name in original(model) if name not in left_alone]

    return names
