"""What a merge emits is base + merged delta, in vLLM and in PEFT, judged by dense weights that torch multiplies."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from amalgam.demo.adapters import demo_adapter_folders
from amalgam.demo.base_model import ensure_base_model
from amalgam.settings import Settings
from amalgam.store.adapter_store import AdapterStore
from tests.e2e.conftest import RunningServer
from tests.e2e.test_merges import merge

TOKENS = [504, 3575, 282, 4649, 314, 260, 2240, 282]
TOP = 8
# Both in float32, by two programs that sum in other orders over 30 layers.
SAME_IN_VLLM = 5e-3
SAME_IN_PEFT = 1e-4


@pytest.fixture
def server(exact_server: RunningServer) -> RunningServer:
    """In bfloat16 what a merge adds would not be told from what is rounded."""
    return exact_server


@pytest.fixture(scope="module")
def base() -> Iterator[Any]:
    with torch.inference_mode():
        yield AutoModelForCausalLM.from_pretrained(
            ensure_base_model(Settings().storage.cache_dir, lambda text: None), dtype=torch.float32
        )


def deltas(folder: Path) -> dict[str, torch.Tensor]:
    """Module name -> scaling * B A, for an adapter whose scaling is the same everywhere."""
    tensors = load_file(folder / "adapter_model.safetensors")
    scaling = uniform_scaling(folder)
    return {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): scaling
        * (tensors[name.replace("lora_A", "lora_B")].float() @ tensor.float())
        for name, tensor in tensors.items()
        if ".lora_A." in name
    }


def uniform_scaling(folder: Path) -> float:
    config = json.loads((folder / "adapter_config.json").read_text())
    assert not config.get("rank_pattern")
    assert not config.get("alpha_pattern")
    rank = config["r"]
    return float(config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank))


def next_log_probs(model: Any, added: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Log-probabilities of the next token with ``added`` on the weights, which are put back afterwards."""
    modules = {name: model.get_submodule(name) for name in added}
    kept = {name: module.weight.data for name, module in modules.items()}
    try:
        for name, module in modules.items():
            module.weight.data = kept[name] + added[name]
        logits: Tensor = model(torch.tensor([TOKENS])).logits
        return logits[0, -1].log_softmax(-1)
    finally:
        for name, module in modules.items():
            module.weight.data = kept[name]


def served_log_probs(client: openai.OpenAI, model: str) -> dict[int, float]:
    answer = client.completions.create(
        model=model,
        prompt=TOKENS,
        max_tokens=1,
        temperature=0,
        logprobs=TOP,
        extra_body={"return_tokens_as_token_ids": True},
    )
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.top_logprobs
    return {int(token.removeprefix("token_id:")): value for token, value in found.top_logprobs[0].items()}


@pytest.mark.parametrize(
    "expression",
    ["sql - 0.5*json", "ties(sql, 0.8*code; density=0.4)", "sce(sql, json; density=0.5, space=core)"],
)
def test_served_and_reloaded_it_is_base_plus_delta(
    expression: str, admin: httpx.Client, client: openai.OpenAI, server: RunningServer, base: Any
) -> None:
    name = f"logits-{len(expression)}"
    made = merge(admin, name, expression)
    assert made.status_code == 201, made.text
    folder = AdapterStore.open(server.store).path(made.json()["digest"])
    expected = next_log_probs(base, deltas(folder))
    if expression.startswith("sql"):
        demo = {name: deltas(folder) for name, folder in demo_adapter_folders().items()}
        by_hand = {key: demo["sql"][key] - 0.5 * demo["json"][key] for key in demo["sql"]}
        assert (next_log_probs(base, by_hand) - expected).abs().max() < 2e-2
    served = served_log_probs(client, name)
    assert len(served) >= TOP
    assert max(abs(value - float(expected[token])) for token, value in served.items()) < SAME_IN_VLLM
    plain = next_log_probs(base, {})
    assert max(abs(float(plain[token]) - value) for token, value in served.items()) > 2 * SAME_IN_VLLM
    reloaded = PeftModel.from_pretrained(base, str(folder))
    try:
        assert (reloaded(torch.tensor([TOKENS])).logits[0, -1].log_softmax(-1) - expected).abs().max() < SAME_IN_PEFT
    finally:
        reloaded.unload()
