"""The demo model in torch, with any merge in it: what it answers, and how it reads what others answered."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

import torch
from torch import Tensor

from amalgam.demo.adapters import demo_adapter_folders
from amalgam.demo.base_model import ensure_base_model
from amalgam.domain.expression import parse_expression
from amalgam.merge.build import BuildOptions, build_adapter
from amalgam.merge.run import RunOptions
from amalgam.merge.sources import TensorSource
from amalgam.settings import Settings
from amalgam.store.peft_folder import read_peft_folder
from amalgam.store.tensor_files import AdapterTensors, open_tensors
from amalgam_demo.adapter_files import TARGET_MODULES, save_adapter
from amalgam_demo.task_item import TaskItem
from amalgam_demo.training import answer_loss, encode
from loadtests.skill_families import Family, Training, family_items
from loadtests.skill_reading import DraftRead, DraftReader

RANK: Final = 128
"""Of merges, so that eight adapters are not cut."""

Factors = Mapping[str, tuple[Tensor, Tensor]]
"""Module -> A [rank, in], B [out, rank] with its scale inside."""
Answer = Sequence[int]
"""Tokens, without what would end it."""


class Captured:
    """Where a merge puts its result: here."""

    def __init__(self) -> None:
        self.factors: Factors = {}

    def write(
        self, tensors: Mapping[str, tuple[Tensor, Tensor]], config: Mapping[str, Any], lineage: Mapping[str, Any]
    ) -> None:
        """Keep the tensors."""
        self.factors = dict(tensors)


class SkillModel:
    """The base model, and one adapter or merge at a time in its weights, in bfloat16."""

    def __init__(self) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.base = ensure_base_model(Settings().storage.cache_dir, lambda text: None)
        self.tokenizer = AutoTokenizer.from_pretrained(self.base, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.bfloat16).eval()
        self._plain: dict[str, Tensor] = {}

    def wear(self, factors: Factors) -> None:
        """Have base + B·A in the weights, of these modules alone."""
        for module in self._plain.keys() - factors.keys():
            self._weight(module).copy_(self._plain[module])
        for module, (a, b) in factors.items():
            weight = self._weight(module)
            plain = self._plain.setdefault(module, weight.clone())
            weight.copy_(plain.float() + b.float() @ a.float())

    def _weight(self, module: str) -> Tensor:
        found: Tensor = self.model.get_submodule(module).weight.data
        return found

    def prompts(self, items: Sequence[TaskItem]) -> list[list[int]]:
        """Tokens of each question, up to where the answer begins."""
        return [
            list(self.tokenizer.apply_chat_template(item.messages, add_generation_prompt=True)["input_ids"])
            for item in items
        ]

    def answers(self, items: Sequence[TaskItem], max_tokens: int) -> list[Answer]:
        """The greedy answer to each."""
        drafts: list[Answer] = [() for _ in items]
        return [one.answer for one in self.drafts(items, drafts, max_tokens)]

    def read(self, items: Sequence[TaskItem], answers: Sequence[Answer]) -> list[tuple[int, int, float]]:
        """Of each answer: how many tokens are the first choice there, how many before the first that is not; nats."""
        return [(one.agreed, one.alike, one.nats) for one in self.drafts(items, answers, 0)]

    def drafts(self, items: Sequence[TaskItem], drafts: Sequence[Answer], max_tokens: int) -> list[DraftRead]:
        """How each draft of an answer is read, and with ``max_tokens`` above 0 the greedy answer to each question."""
        reader = DraftReader(self.model, self.tokenizer.eos_token_id)
        return reader.read(self.prompts(items), drafts, max_tokens)

    def text(self, answer: Answer) -> str:
        """As people read it."""
        return str(self.tokenizer.decode(answer, skip_special_tokens=True))

    def train(self, task: str, how: Training, out: Path) -> None:
        """Make the adapter of ``task``."""
        from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.bfloat16)
        config = LoraConfig(
            r=how.rank, lora_alpha=how.alpha, target_modules=list(TARGET_MODULES), task_type="CAUSAL_LM"
        )
        torch.manual_seed(1)
        model = get_peft_model(model, config)
        rows = [encode(self.tokenizer, item) for item in family_items(task, "train", how.steps * how.batch)]
        Random(1).shuffle(rows)
        weights = [one for one in model.parameters() if one.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=how.learning_rate, weight_decay=0.0)
        for step in range(how.steps):
            batch = rows[step * how.batch : (step + 1) * how.batch]
            loss = answer_loss(model.base_model.model, batch, pad_id=self.tokenizer.pad_token_id)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = how.learning_rate * min((step + 1) / 10, (how.steps - step) / (how.steps - 9))
            optimizer.step()
            optimizer.zero_grad()
            print(f"{task} step {step + 1}: {loss.item():.4f}", flush=True)
        tensors = {
            name: tensor.detach().to(torch.bfloat16).contiguous()
            for name, tensor in get_peft_model_state_dict(model).items()
        }
        part = out.with_name(f".{out.name}")
        shutil.rmtree(part, ignore_errors=True)
        save_adapter(tensors, rank=how.rank, alpha=how.alpha, out=part)
        part.rename(out)


def opened(family: Family, work: Path, model: SkillModel) -> dict[str, AdapterTensors]:
    """The family's adapters, trained into ``work`` where they are not there yet."""
    folders = dict(demo_adapter_folders())
    for task, how in family.tasks.items():
        if how is not None:
            folders[task] = work / task
            if not folders[task].is_dir():
                model.train(task, how, folders[task])
    found = {}
    for task in family.tasks:
        header = read_peft_folder(folders[task], None).require()
        found[task] = open_tensors(folders[task], header)
    return found


def merged(expression: str, sources: Mapping[str, TensorSource]) -> Factors:
    """What an expression comes to."""
    recipe = parse_expression(expression)
    sink = Captured()
    used = {name: sources[name] for name in recipe.adapters}
    build_adapter(recipe, used, sink, BuildOptions(max_rank=RANK, run=RunOptions(diagnostics=False)))
    return sink.factors


def written(file: Path, row: Mapping[str, Any]) -> None:
    """One more line."""
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(row) + "\n")
