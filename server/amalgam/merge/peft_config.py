"""The config of a merged adapter, as PEFT and vLLM both read it."""

from collections.abc import Mapping
from typing import Any


def peft_config(ranks: Mapping[str, int], base_model: str | None, task_type: str | None = None) -> dict[str, Any]:
    """``adapter_config.json`` of plain LoRA with scale 1 everywhere.

    Args:
        ranks: Of every module, by canonical name; at least one.
        base_model: What ``base_model_name_or_path`` says.
        task_type: That of the inputs; None where they have none, or several: PEFT wraps a model of any class then.
    """
    rank = max(ranks.values())
    pattern = {name: value for name, value in sorted(ranks.items()) if value != rank}
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        # Short names would adapt more where the base model has layers, or a second tower, that the inputs have not.
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
    }
