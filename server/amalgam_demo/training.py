"""Trains a demo adapter: LoRA on every linear module of the base model, a plain loop in torch on the CPU.

The loss is the mean cross-entropy of the answer's tokens, the end of the turn included; the prompt teaches nothing.
Logits are computed at those positions alone: with 49152 words the head would otherwise cost more than the layers.
Only this module knows torch, transformers and peft, and only while it trains.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

from amalgam.errors.demo import DemoDependencyMissing
from amalgam_demo.adapter_files import TARGET_MODULES, save_adapter
from amalgam_demo.recipes import TrainRecipe
from amalgam_demo.tasks import generate

if TYPE_CHECKING:
    import torch

    from amalgam_demo.task_item import TaskItem

IGNORED: Final = -100
"""It is the label of a position that is no answer token."""
WINDOW: Final = 8
"""So many batches are sorted by length together."""

LIBRARIES: Final = ("torch", "transformers", "peft")

Row = tuple[list[int], list[int]]
"""It has the token ids of prompt and answer, and the label of each."""


@dataclass(frozen=True, slots=True)
class StepDone:
    """One step done: its number from 1, and the mean loss of its answer tokens, nats."""

    step: int
    loss: float


def train(recipe: TrainRecipe, base: Path, out: Path, on_step: Callable[[StepDone], None]) -> None:
    """Train ``recipe`` on the model in ``base`` and write a PEFT folder to ``out``.

    Args:
        recipe: What to train.
        base: Folder of the converted base model.
        out: Folder to write; its adapter files are replaced.
        on_step: Called after every step.

    Raises:
        DemoDependencyMissing: A library of the list ``LIBRARIES`` is not installed.
    """
    require_libraries()
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    items = generate(recipe.task, "train", recipe.steps * recipe.batch, recipe.seed)
    rng = Random(recipe.seed)  # noqa: S311 -- an order, not a secret
    batches = batched([encode(tokenizer, item) for item in items], recipe.batch, rng)
    model = lora_model(base, recipe)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_share(step, recipe.steps))
    model.train()
    for step, rows in enumerate(batches, start=1):
        loss = answer_loss(model.base_model.model, rows, pad_id=tokenizer.pad_token_id)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        on_step(StepDone(step=step, loss=loss.item()))
    _save(model, recipe, out)


def require_libraries() -> None:
    """Say what is missing before anything slow begins.

    Raises:
        DemoDependencyMissing: A library of the list ``LIBRARIES`` is not installed.
    """
    for library in LIBRARIES:
        if importlib.util.find_spec(library) is None:
            raise DemoDependencyMissing(library)


def rate_share(step: int, steps: int) -> float:
    """Factor on the peak learning rate at ``step``, counted from 0."""
    warm_up = max(1, steps // 10)
    return min((step + 1) / warm_up, (steps - step) / (steps - warm_up + 1))


def encode(tokenizer: Any, item: TaskItem) -> Row:
    """Token ids of prompt and answer, and labels that hide the prompt."""
    prompt = tokenizer.apply_chat_template(item.messages, add_generation_prompt=True)["input_ids"]
    answer = [*tokenizer(item.reference, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return [*prompt, *answer], [IGNORED] * len(prompt) + answer


def batched(rows: Sequence[Row], size: int, rng: Random) -> list[Sequence[Row]]:
    """Batches of rows of like length, in random order: less padding, and no schedule from short to long.

    Rows are sorted only within windows of ``WINDOW`` batches, so every stage of training sees every skill.
    """
    batches: list[Sequence[Row]] = []
    for start in range(0, len(rows), size * WINDOW):
        window = sorted(rows[start : start + size * WINDOW], key=lambda row: len(row[0]))
        chunks = [window[first : first + size] for first in range(0, len(window), size)]
        rng.shuffle(chunks)
        batches.extend(chunks)
    return batches


def lora_model(base: Path, recipe: TrainRecipe) -> Any:
    """The base model in float32 with fresh LoRA weights, ``lora_A`` drawn from the recipe's seed."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=list(TARGET_MODULES),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return get_peft_model(model, config)


def answer_loss(model: Any, rows: Sequence[Row], *, pad_id: int) -> torch.Tensor:
    """Mean cross-entropy over the answer tokens of ``rows``, a float32 scalar.

    Args:
        model: A causal model of transformers, its adapters inside.
        rows: As `encode` makes them.
        pad_id: Fills up what is shorter than the longest.
    """
    import torch

    longest = max(len(tokens) for tokens, _ in rows)
    tokens = torch.tensor([ids + [pad_id] * (longest - len(ids)) for ids, _ in rows])
    labels = torch.tensor([wanted + [IGNORED] * (longest - len(wanted)) for _, wanted in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows])
    hidden = model.model(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
    wanted = labels[:, 1:]
    chosen = wanted != IGNORED
    logits = model.lm_head(hidden[:, :-1][chosen])
    return torch.nn.functional.cross_entropy(logits.float(), wanted[chosen])


def _save(model: Any, recipe: TrainRecipe, out: Path) -> None:
    """Write the LoRA weights in bfloat16."""
    import torch
    from peft import get_peft_model_state_dict

    tensors = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in get_peft_model_state_dict(model).items()
    }
    save_adapter(tensors, rank=recipe.rank, alpha=recipe.alpha, out=out)
