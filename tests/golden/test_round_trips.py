"""An adapter with every kind of scale, through every pair of formats and back: PEFT's own delta each time.

Each format has its own place for ranks and scales: PEFT by patterns and rsLoRA, mlx-lm one scale for all, llama.cpp an
alpha over each tensor's rank.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from amalgam.__main__ import app

EXACT = 1e-6
"""Of Δ, relative: float32 factors, and a scale that goes from one place to another twice."""
FORMS = {"peft": "", "mlx": "", "gguf": ".gguf"}
LAYERS = 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """A base model, an adapter of two of its layers, and PEFT's delta of each module."""
    root = tmp_path_factory.mktemp("round")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=LAYERS, num_key_value_heads=2, **sizes))
    model.save_pretrained(root / "base")
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["q_proj", "v_proj", "down_proj"],
        rank_pattern={r"layers\.1\..*v_proj": 2, r"layers\.2\..*down_proj": 7},
        alpha_pattern={r"layers\.2\..*q_proj": 11},
        use_rslora=True,
        layers_to_transform=[1, 2],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(root / "source")
    deltas = {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").double()
        for name, module in adapted.named_modules()
        if isinstance(module, Linear)
    }
    assert len({module.r["default"] for module in adapted.modules() if isinstance(module, Linear)}) == 3
    return root / "base", root / "source", deltas


def built(source: Path, out: Path, form: str, base: Path) -> Path:
    options = ["--format", form, "--dtype", "float32", "--base", str(base)]
    done = CliRunner().invoke(app, ["merge", "build", str(source), "-o", str(out), *options])
    assert done.exit_code == 0, done.output
    return out


def loaded_by_peft(folder: Path, base: Path) -> dict[str, Any]:
    """By PEFT itself, and nothing of the folder is left over."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), folder)
    modules = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    assert len(load_file(folder / "adapter_model.safetensors")) == 2 * len(modules)
    assert json.loads((folder / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").double()
        for name, module in modules.items()
    }


@pytest.mark.parametrize("second", FORMS)
@pytest.mark.parametrize("first", FORMS)
def test_a_delta_is_the_same_after_two_formats(first: str, second: str, folders: Any, tmp_path: Path) -> None:
    base, source, deltas = folders
    one = built(source, tmp_path / f"one{FORMS[first]}", first, base)
    two = built(one, tmp_path / f"two{FORMS[second]}", second, base)
    found = loaded_by_peft(built(two, tmp_path / "back", "peft", base), base)
    assert found.keys() == deltas.keys()
    for name, delta in deltas.items():
        assert (found[name] - delta).norm() <= EXACT * delta.norm(), name
