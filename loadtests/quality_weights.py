"""Learns what each module of a merge should weigh: a number a module and adapter, by gradient on training questions.

The adapters' factors stay as they are; only the weights of the sum move, so the result is a recipe: `task_arithmetic`
with a filter for every module. The loss is the mean over the tasks of the cross-entropy of the references' tokens. It
is what AdaMerging (arXiv:2310.02575) does with entropy instead of references, because it has none. The questions are
new draws from the adapters' training split, which has many wordings; learned on the development split, which has few,
the weights knew those and lost others (see the quality table). With twelve questions a step the last steps are noisy,
so weights of several stages may be averaged (Izmailov et al., 2018, arXiv:1803.05407).

    python loadtests/quality_weights.py --out early.json [--steps 160]       # twenty minutes on 2 cores
    python loadtests/quality_weights.py --after early.json --steps 200 --out late.json
    python loadtests/quality_weights.py --average early.json late.json --out learned.json
    python loadtests/quality.py --resume FILE --weights learned.json
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "server")]

from amalgam.demo.adapters import demo_adapter_folders  # noqa: E402
from amalgam.demo.base_model import ensure_base_model  # noqa: E402
from amalgam.settings import Settings  # noqa: E402
from amalgam_demo.task_item import Split  # noqa: E402
from amalgam_demo.tasks import generate  # noqa: E402
from amalgam_demo.training import Row, answer_loss, encode  # noqa: E402
from loadtests.quality_contenders import ADAPTERS  # noqa: E402

SEED = 1
SPLIT: Split = "train"
HELD = 30
"""Items of the development split, a task, to see that it generalises."""
BATCH = 4
"""Items a task in a step."""
RATE = 0.05
FIRST = 0.7
"""What every weight starts at."""


class WeightedSum(nn.Module):
    """A linear layer plus Σ w·Δ with a learnable w an adapter.

    Args:
        linear: the layer, frozen.
        factors: of each adapter: A [rank, in], B [out, rank] with its scale inside.
    """

    def __init__(self, linear: nn.Module, factors: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.linear = linear
        self.down = torch.cat([a for a, _ in factors])
        self.up = torch.cat([b for _, b in factors], dim=1)
        self.ranks = torch.tensor([len(a) for a, _ in factors])
        self.weights = nn.Parameter(torch.full((len(factors),), FIRST))

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        spread = self.weights.repeat_interleave(self.ranks)
        below = nn.functional.linear(inputs, self.down) * spread
        return self.linear(inputs) + nn.functional.linear(below, self.up)  # type: ignore[no-any-return]


def with_weights(model: nn.Module) -> dict[str, WeightedSum]:
    """Put the sums into ``model``; module name -> sum."""
    model.requires_grad_(requires_grad=False)
    folders = demo_adapter_folders()
    tensors, scales = {}, {}
    for name in ADAPTERS:
        tensors[name] = load_file(folders[name] / "adapter_model.safetensors")
        config = json.loads((folders[name] / "adapter_config.json").read_text())
        scales[name] = config["lora_alpha"] / config["r"]
    found: dict[str, WeightedSum] = {}
    for module in sorted({key.split(".lora_")[0] for key in tensors[ADAPTERS[0]]}):
        at = module.removeprefix("base_model.model.")
        parent, _, last = at.rpartition(".")
        factors = [
            (its[f"{module}.lora_A.weight"].float(), its[f"{module}.lora_B.weight"].float() * scales[name])
            for name, its in tensors.items()
        ]
        found[at] = WeightedSum(model.get_submodule(at), factors)
        setattr(model.get_submodule(parent), last, found[at])
    return found


def learn(model: nn.Module, tokenizer: Any, sums: Mapping[str, WeightedSum], done: int, steps: int) -> dict[str, float]:
    """Move the weights in so many more steps, on new questions; returns each task's loss on items of another split."""
    items = {task: _rows(tokenizer, task, SPLIT, (done + steps) * BATCH)[done * BATCH :] for task in ADAPTERS}
    optimizer = torch.optim.Adam([one.weights for one in sums.values()], lr=RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 * (steps - step) / steps))
    for step in range(steps):
        total = 0.0
        for rows in items.values():
            loss = answer_loss(model, rows[step * BATCH : (step + 1) * BATCH], pad_id=tokenizer.pad_token_id)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        print(f"step {step + 1}: {total / len(items):.4f}", file=sys.stderr)
    return {task: _mean_loss(model, _rows(tokenizer, task, "dev", HELD), tokenizer.pad_token_id) for task in ADAPTERS}


def _rows(tokenizer: Any, task: str, split: Split, count: int) -> list[Row]:
    return [encode(tokenizer, item) for item in generate(task, split, count, SEED)]


def _mean_loss(model: nn.Module, rows: Sequence[Row], pad_id: int) -> float:
    with torch.no_grad():
        return answer_loss(model, rows, pad_id=pad_id).item()


def take_up(sums: Mapping[str, WeightedSum], recipe: Mapping[str, Any]) -> None:
    """Put the weights of a recipe in."""
    for at, part in enumerate(recipe["inputs"]):
        for rule in part["weight"]:
            sums[rule["filter"]].weights.data[at] = rule["value"]


def recipe(sums: Mapping[str, WeightedSum], steps: int) -> dict[str, Any]:
    """What the merge engine takes; a module's name ends its filter, so that no other module's name contains it."""
    inputs = []
    for at, name in enumerate(ADAPTERS):
        rules = [{"filter": module, "value": round(float(one.weights.detach()[at]), 4)} for module, one in sums.items()]
        inputs.append({"adapter": name, "weight": rules})
    setting = f"a weight per module, learned in {steps} steps on training questions"
    return {"method": "task_arithmetic", "inputs": inputs, "setting": setting, "steps": steps}


def averaged(stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of the weights of several stages."""
    found: dict[str, Any] = json.loads(json.dumps(stages[-1]))
    for at, part in enumerate(found["inputs"]):
        for number, rule in enumerate(part["weight"]):
            values = [stage["inputs"][at]["weight"][number]["value"] for stage in stages]
            rule["value"] = round(sum(values) / len(values), 4)
    steps = " and ".join(str(stage["steps"]) for stage in stages)
    found["setting"] = f"a weight per module, learned on training questions: the mean of those after {steps} steps"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--after", type=Path, help="weights to go on from, with other questions")
    parser.add_argument("--average", type=Path, nargs="+", help="learn nothing, average these")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.average:
        found = averaged([json.loads(file.read_text()) for file in arguments.average])
    else:
        found = learned(arguments.after, arguments.steps)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")


def learned(after: Path | None, steps: int) -> dict[str, Any]:
    """Weights after so many steps, from the beginning or from those of a file."""
    before: dict[str, Any] = json.loads(after.read_text()) if after else {"inputs": [], "steps": 0}
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = ensure_base_model(Settings().storage.cache_dir, lambda text: None)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    sums = with_weights(model)
    take_up(sums, before)
    losses = learn(model, tokenizer, sums, before["steps"], steps)
    print(json.dumps({task: round(loss, 4) for task, loss in losses.items()}))
    return recipe(sums, before["steps"] + steps)


if __name__ == "__main__":
    main()
