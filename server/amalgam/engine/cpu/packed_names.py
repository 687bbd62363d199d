"""What vLLM's classes say of layers that are several modules in one, put right where checkpoints have one."""

import functools
from typing import Any, Final

_AS_STORED: Final[dict[str, dict[str, list[str]]]] = {
    # In its checkpoints gate and up are one module, as in Phi-3's, of which vLLM says so.
    "Glm4ForCausalLM": {"gate_up_proj": ["gate_up_proj"]},
}
"""By class of vLLM 0.32, these are the names that adapters have for a layer."""


def as_stored(original: Any) -> Any:
    """Stands in for `process_packed_modules_mapping`, by which LoRA's manager looks for a layer's factors."""

    @functools.wraps(original)
    def mapping(model: Any, *more: Any, **named: Any) -> dict[str, list[str]]:
        said: dict[str, list[str]] = original(model, *more, **named)
        return said | _AS_STORED.get(type(model).__name__, {})

    return mapping
