"""The config of a merged adapter, as PEFT and vLLM both read it."""

from collections.abc import Mapping, Sequence
from typing import Any

from amalgam.domain.recipe import layer_of


def peft_config(ranks: Mapping[str, int], base_model: str | None) -> dict[str, Any]:
    """``adapter_config.json`` of plain LoRA with scale 1 everywhere.

    Args:
        ranks: Of every module, by canonical name; at least one.
        base_model: What ``base_model_name_or_path`` says.
    """
    rank = max(ranks.values())
    pattern = {name: value for name, value in sorted(ranks.items()) if value != rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": target_modules(tuple(ranks)),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
    }


def target_modules(modules: Sequence[str]) -> list[str]:
    """Short names where every layer up to the last has the module, so that they mean the same; else full ones."""
    layers = [layer for name in modules if (layer := layer_of(name)) is not None]
    wanted = max(layers, default=-1) + 1
    by_suffix: dict[str, list[str]] = {}
    for name in modules:
        by_suffix.setdefault(name.rpartition(".")[2], []).append(name)
    found: set[str] = set()
    for suffix, names in by_suffix.items():
        covered = {layer_of(name) for name in names} == set(range(wanted))
        found |= {suffix} if covered and len(names) == wanted else set(names)
    return sorted(found)
