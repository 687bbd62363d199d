"""What vLLM and its platform can do with a base model, known before a weight is read."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Final

from amalgam.engine.cpu.processor import multiplies_words
from amalgam.engine.finite_answers import PROBE_TOKENS
from amalgam.engine.start_reason import start_reason
from amalgam.errors.engine import BaseNotServable, BaseTakesNoLora

_NOT_ON_CPU: Final = frozenset({"bitsandbytes", "fp8", "fbgemm_fp8", "modelopt", "modelopt_fp4", "mxfp4", "torchao"})
"""Methods of quantisation are here whose kernels vLLM has for GPUs alone."""
_IN_WORDS: Final = frozenset({"gptq", "auto_gptq", "awq", "auto_awq", "auto_round", "inc"})
"""Weights of four bits lie in words in these."""
_FOUR: Final = 4
_PACKED: Final = "pack-quantized"
"""It is what compressed-tensors calls weights in words."""


def require_servable(config: Any) -> None:
    """Raise where the base model cannot be served here; vLLM would find out once it has loaded it, or in a first step.

    Args:
        config: vLLM's own, of an engine with LoRA.

    Raises:
        BaseTakesNoLora: the model's class cannot carry adapters.
        BaseNotServable: its weights are packed in a way that this platform has no kernels for, or its heads have a size
            that these do not take; its tokenizer cannot be read; it sees, and torchvision is not installed.
    """
    from vllm.model_executor.model_loader.utils import get_model_cls
    from vllm.model_executor.models.interfaces import supports_lora
    from vllm.platforms import current_platform

    if find_spec("torchvision") is None and _sees(config.model_config.hf_config):
        # What vLLM found out of its classes once, it remembers, and would fail in the core.
        raise _no_torchvision()
    found = get_model_cls(config.model_config)
    if config.lora_config is not None and not supports_lora(found):
        raise BaseTakesNoLora(found.__name__)
    shortest = len(PROBE_TOKENS) + 1
    if config.model_config.max_model_len < shortest:
        raise BaseNotServable(
            f"a context of {config.model_config.max_model_len} tokens leaves no room for an answer. "
            f"Give --max-model-len at least {shortest}"
        )
    if current_platform.is_cpu():
        _require_heads(config.model_config)
    packed, words = _quantization(config.model_config.hf_config), multiplies_words()
    if current_platform.is_cpu() and (why := unserved_on_cpu(packed, words=words)) is not None:
        others = "with GPTQ, AWQ or compressed-tensors" if words else "to integers of eight bits (W8A8)"
        raise BaseNotServable(
            f"{why}. Serve it on a GPU, or take a model that is quantised {others}, or is not quantised"
        )
    _require_tokenizer(config.model_config)


def _require_tokenizer(model_config: Any) -> None:
    """Load the tokenizer, which vLLM keeps then: its own error does not say what it is about."""
    if model_config.skip_tokenizer_init:
        return
    from vllm.tokenizers import cached_tokenizer_from_config

    try:
        cached_tokenizer_from_config(model_config)
    except Exception as error:
        raise BaseNotServable(
            f"its tokenizer cannot be read: {start_reason(error)}. Fetch the model's whole repository, or name another "
            "tokenizer with --tokenizer"
        ) from error


def _require_heads(model_config: Any) -> None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    size, served = model_config.get_head_size(), CPUAttentionBackend.get_supported_head_sizes()
    # Without attention there are no heads, and of heads in one compressed part the size is that of no matrix.
    if size and not model_config.use_mla and size not in served:
        sizes = f"{', '.join(map(str, served[:-1]))} or {served[-1]}"
        raise BaseNotServable(
            f"its attention has {size} entries a head, and vLLM's kernels for CPUs take {sizes}. Serve it on a GPU"
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

    return _no_torchvision() if _sees(get_config(model, trust_remote_code=False)) else None


def _sees(hf_config: Any) -> bool:
    return getattr(hf_config, "vision_config", None) is not None


def _no_torchvision() -> BaseNotServable:
    return BaseNotServable(
        "vLLM's classes for models that see need torchvision, which is not installed. Install it with "
        "'python -m amalgam.cli.install_torchvision'"
    )


def unserved_on_cpu(quantization: object, *, words: bool) -> str | None:
    """Why vLLM has no kernel for CPUs that reads it, without a full stop; None where it has, or nothing is quantised.

    Args:
        quantization: ``quantization_config`` of the model's config.
        words: whether there is a kernel for weights packed in words; see `multiplies_words`.
    """
    if not isinstance(quantization, Mapping):
        return None
    method = str(quantization.get("quant_method", "")).replace("-", "_")
    why = "its weights are quantised with {}, for which vLLM has no kernels on a CPU"
    if method in _NOT_ON_CPU:
        return why.format(method)
    if method in _IN_WORDS and not words:
        return f"{why.format(method)} without AVX-512"
    groups = quantization.get("config_groups")
    if method == "compressed_tensors" and isinstance(groups, Mapping):
        for group in groups.values():
            weights = group.get("weights") if isinstance(group, Mapping) else None
            if not isinstance(weights, Mapping):
                continue
            if weights.get("type") == "float":
                return why.format(f"compressed-tensors to floats of {weights.get('num_bits')} bits")
            in_words = _PACKED in (quantization.get("format"), group.get("format")) or weights.get("num_bits") == _FOUR
            if in_words and not words:
                bits = f"compressed-tensors to integers of {weights.get('num_bits')} bits in words"
                return f"{why.format(bits)} without AVX-512"
    return None
