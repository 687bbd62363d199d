"""Training on a tiny model: the same seed gives the same bytes, and only answers teach."""

import json
import math
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from amalgam.errors.demo import DemoDependencyMissing
from amalgam_demo import training
from amalgam_demo.adapter_files import BASE_MODEL_ID
from amalgam_demo.recipes import TrainRecipe
from amalgam_demo.tasks import generate
from amalgam_demo.training import IGNORED, train

RECIPE = TrainRecipe(task="sql", steps=3, batch=2, rank=4, alpha=8, seed=5)
TEMPLATE = (
    "{% for m in messages %}<|s|>{{ m['role'] }}\n{{ m['content'] }}<|e|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|s|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A Llama of two layers that reads bytes."""
    folder = tmp_path_factory.mktemp("base")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|s|>", eos_token="<|e|>", pad_token="<|e|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    shape = LlamaConfig(
        vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(shape).to(torch.bfloat16).save_pretrained(folder)
    return folder


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def test_the_same_recipe_gives_the_same_bytes_and_another_seed_others(base: Any, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    steps: list[Any] = []
    for name, recipe in (("a", RECIPE), ("b", RECIPE), ("c", TrainRecipe(**{**RECIPE.as_dict(), "seed": 6}))):
        train(recipe, base, tmp_path / name, steps.append)
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "c")
    assert [done.step for done in steps[:3]] == [1, 2, 3]
    assert steps[0].loss == pytest.approx(math.log(258), rel=0.1)
    assert torch.equal(torch.random.get_rng_state(), state), "training left the global generator elsewhere"


def test_the_folder_is_a_plain_bfloat16_lora(base: Any, tmp_path: Path) -> None:
    train(RECIPE, base, tmp_path, lambda _: None)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * 7
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert tensors["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"].shape == (4, 64)
    assert all(tensor.any() for tensor in tensors.values())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 8, BASE_MODEL_ID)


def test_the_loss_is_that_of_the_answer_tokens_alone(base: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = [training.encode(tokenizer, item) for item in generate("sql", "train", 3, seed=1)]
    model = training.lora_model(base, RECIPE)
    total = count = 0.0
    for tokens, labels in rows:
        assert tokens[-1] == labels[-1] == tokenizer.eos_token_id
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
        for position, label in enumerate(labels):
            if label != IGNORED:
                total -= logits[position - 1, label].item()
                count += 1
        assert tokenizer.decode([label for label in labels if label != IGNORED][:-1]).startswith("SELECT")
    together = training.answer_loss(model.base_model.model, rows, pad_id=tokenizer.pad_token_id)
    assert together.item() == pytest.approx(total / count, rel=1e-4)


def test_the_trained_adapter_loads_in_peft_and_changes_the_model(base: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    train(RECIPE, base, tmp_path, lambda _: None)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before = plain(tokens).logits
        after = PeftModel.from_pretrained(plain, str(tmp_path))(tokens).logits
    assert not torch.allclose(before, after)


def test_batches_hold_every_row_once_and_rows_of_like_length() -> None:
    rows = [([0] * length, [0] * length) for length in range(1, 41)]
    batches = training.batched(rows, 4, Random(1))
    assert sorted(len(row[0]) for batch in batches for row in batch) == list(range(1, 41))
    assert all(max(len(row[0]) for row in batch) - min(len(row[0]) for row in batch) < 8 for batch in batches)
    assert [len(batch[0][0]) for batch in batches] != sorted(len(batch[0][0]) for batch in batches)


@pytest.mark.parametrize("steps", [1, 2, 10, 160])
def test_the_rate_rises_then_falls_and_never_reaches_zero_while_training(steps: int) -> None:
    rates = [training.rate_share(step, steps) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, base: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(training, "LIBRARIES", ("surely_not_installed",))
    with pytest.raises(DemoDependencyMissing, match="pip install surely_not_installed"):
        train(RECIPE, base, tmp_path, lambda _: None)
