"""The files of a demo adapter: a PEFT folder with nothing in it but what a loader needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from amalgam.store.file_rules import CONFIG_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    import torch

BASE_MODEL_ID: Final = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The config's ``base_model_name_or_path`` says it: the public name of the model, not a folder of this machine."""
TARGET_MODULES: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""They are all linear modules of a Llama block."""


def adapter_config(rank: int, alpha: int) -> dict[str, Any]:
    """The ``adapter_config.json`` of a plain LoRA: no DoRA, no bias, no extra modules, no patterns."""
    return {
        "alpha_pattern": {},
        "base_model_name_or_path": BASE_MODEL_ID,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "target_modules": list(TARGET_MODULES),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def save_adapter(tensors: dict[str, torch.Tensor], *, rank: int, alpha: int, out: Path) -> None:
    """Write ``tensors`` (PEFT's names, one dtype) and their configuration into ``out``, which is made if missing."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / WEIGHTS_FILE, metadata={"format": "pt"})
    text = json.dumps(adapter_config(rank, alpha), indent=2) + "\n"
    (out / CONFIG_FILE).write_text(text, encoding="utf-8")
