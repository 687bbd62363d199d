"""What vLLM and its platform can do with a base model, known before a weight is read."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Final

from amalgam.engine.finite_answers import PROBE_TOKENS
from amalgam.errors.engine import BaseNotServable, BaseTakesNoLora

_NOT_ON_CPU: Final = frozenset({"bitsandbytes", "fp8", "fbgemm_fp8", "modelopt", "modelopt_fp4", "mxfp4", "torchao"})
"""Methods of quantisation are here whose kernels vLLM has for GPUs alone."""


def require_servable(config: Any) -> None:
    """Raise where the base model cannot be served here; vLLM would find out once it has loaded it, or in a first step.

    Args:
        config: vLLM's own, of an engine with LoRA.

    Raises:
        BaseTakesNoLora: the model's class cannot carry adapters.
        BaseNotServable: its weights are packed in a way that this platform has no kernels for.
    """
    from vllm.model_executor.model_loader.utils import get_model_cls
    from vllm.model_executor.models.interfaces import supports_lora
    from vllm.platforms import current_platform

    found = get_model_cls(config.model_config)
    if config.lora_config is not None and not supports_lora(found):
        raise BaseTakesNoLora(found.__name__)
    shortest = len(PROBE_TOKENS) + 1
    if config.model_config.max_model_len < shortest:
        raise BaseNotServable(
            f"a context of {config.model_config.max_model_len} tokens leaves no room for an answer. "
            f"Give --max-model-len at least {shortest}"
        )
    packed = _quantization(config.model_config.hf_config)
    if current_platform.is_cpu() and (method := unserved_on_cpu(packed)) is not None:
        raise BaseNotServable(
            f"its weights are quantised with {method}, for which vLLM has no kernels on a CPU. Serve it on a GPU, or "
            "take a model that is quantised with GPTQ, AWQ or compressed-tensors, or is not quantised"
        )


def _quantization(hf_config: Any) -> object:
    """What a config says of it, at the top or of its text, under today's name or the first of compressed-tensors."""
    sections = (hf_config, getattr(hf_config, "text_config", None))
    said = (getattr(at, name, None) for at in sections for name in ("quantization_config", "compression_config"))
    return next((found for found in said if found is not None), None)


def without_torchvision(model: str, error: ValueError) -> BaseNotServable | None:
    """What is to be said in the place of ``error`` where vLLM cannot import its class of a model that sees; else None.

    Args:
        model: folder of the base model.
        error: of vLLM's, when it was asked for its config.
    """
    if "failed to be inspected" not in str(error) or find_spec("torchvision") is not None:
        return None
    from vllm.transformers_utils.config import get_config

    if getattr(get_config(model, trust_remote_code=False), "vision_config", None) is None:
        return None
    return BaseNotServable(
        "vLLM's classes for models that see need torchvision, which is not installed. Install it with "
        "'python -m amalgam.cli.install_torchvision'"
    )


def unserved_on_cpu(quantization: object) -> str | None:
    """The method of quantisation that no kernel for CPUs reads; None where there is one, or nothing is quantised.

    Args:
        quantization: ``quantization_config`` of the model's config.
    """
    if not isinstance(quantization, Mapping):
        return None
    method = str(quantization.get("quant_method", "")).replace("-", "_")
    if method in _NOT_ON_CPU:
        return method
    groups = quantization.get("config_groups")
    if method == "compressed_tensors" and isinstance(groups, Mapping):
        for group in groups.values():
            weights = group.get("weights") if isinstance(group, Mapping) else None
            if isinstance(weights, Mapping) and weights.get("type") == "float":
                return f"compressed-tensors to floats of {weights.get('num_bits')} bits"
    return None
