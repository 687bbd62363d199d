"""The card of a demo adapter: what it is, how it was made and what it scores, written by code from ``card.json``."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self

from amalgam_demo.adapter_files import BASE_MODEL_ID
from amalgam_demo.recipes import TrainRecipe
from amalgam_demo.tasks import TASKS, generate

FACTS_FILE: Final = "card.json"
CARD_FILE: Final = "README.md"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row of the score table.

    Attributes:
        right: Items answered right. total: Items asked.
        split: Split they came from. seed: Seed they were drawn with.
        through: What generated the answers, with its version.
    """

    right: int
    total: int
    split: str
    seed: int
    through: str


@dataclass(frozen=True, slots=True)
class Card:
    """Everything the card says that is not the same for all.

    Attributes:
        recipe: How the adapter was trained.
        versions: Library -> version at training.
        final_loss: Mean loss of the last tenth of the steps, nats per answer token.
        scores: ``base`` and ``adapter``, as far as measured.
    """

    recipe: TrainRecipe
    versions: dict[str, str]
    final_loss: float
    scores: dict[str, Measurement] = field(default_factory=dict)

    def with_score(self, who: str, measurement: Measurement) -> Self:
        """The same card with the row ``who`` set."""
        return replace(self, scores={**self.scores, who: measurement})

    def as_dict(self) -> dict[str, Any]:
        """What ``card.json`` holds."""
        scores = {who: _fields(row) for who, row in sorted(self.scores.items())}
        return {
            "recipe": self.recipe.as_dict(),
            "versions": self.versions,
            "final_loss": self.final_loss,
            "scores": scores,
        }


def _fields(row: Measurement) -> dict[str, Any]:
    return {"right": row.right, "total": row.total, "split": row.split, "seed": row.seed, "through": row.through}


def read_card(folder: Path) -> Card:
    """The card of the adapter in ``folder``."""
    facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
    return Card(
        recipe=TrainRecipe(**facts["recipe"]),
        versions=facts["versions"],
        final_loss=facts["final_loss"],
        scores={who: Measurement(**row) for who, row in facts["scores"].items()},
    )


def write_card(card: Card, folder: Path) -> None:
    """Write ``card.json`` and the card itself into ``folder``."""
    text = json.dumps(card.as_dict(), indent=2, sort_keys=True) + "\n"
    (folder / FACTS_FILE).write_text(text, encoding="utf-8")
    (folder / CARD_FILE).write_text(render(card), encoding="utf-8")


def render(card: Card) -> str:
    """The card as Markdown, with a front matter that model hubs read."""
    recipe, task = card.recipe, TASKS[card.recipe.task]
    example = generate(recipe.task, "dev", 1, seed=0)[0]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(card.versions.items()))
    parts = [
        f"---\nbase_model: {BASE_MODEL_ID}\nlibrary_name: peft\nlicense: apache-2.0\ntags: [lora]\n---",
        f"# {recipe.task}\n\nA LoRA adapter for {BASE_MODEL_ID}: {task.summary}. It is a demo of serving and merging "
        "adapters, trained on generated sentences of a few dozen kinds; outside them it promises nothing.",
        f"Ask it like this:\n\n```\n{example.prompt}\n```\n\nIt answers like this:\n\n```\n{example.reference}\n```",
        f"## Scores\n\n{_score_table(card)}\n\nMetric: {task.metric}. Greedy, at most 96 tokens. The items' entities "
        "and wordings are in pools that training never draws from; the kinds of question are the same.",
        f"## Recipe\n\n{_recipe_table(card)}\n\nVersions: {versions}. Answer tokens alone carry loss; no weight decay, "
        "gradients clipped at 1; the rate warms up over a tenth of the steps and falls straight to zero.",
        f"Again: `amalgam demo train {recipe.task}` and, with a server running, `amalgam demo score {recipe.task}`.",
    ]
    return "\n\n".join(parts) + "\n"


def _score_table(card: Card) -> str:
    lines = ["| model | right | of | share | items | generated through |", "|---|---|---|---|---|---|"]
    for who in ("base", "adapter"):
        row = card.scores.get(who)
        if row is None:
            lines.append(f"| {who} | not measured yet | | | | |")
            continue
        share = f"{100 * row.right / row.total:.1f} %"
        lines.append(f"| {who} | {row.right} | {row.total} | {share} | {row.split}, seed {row.seed} | {row.through} |")
    return "\n".join(lines)


def _recipe_table(card: Card) -> str:
    rows = {**card.recipe.as_dict(), "modules": "all linear", "final loss": f"{card.final_loss:.4f}"}
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {name.replace('_', ' ')} | {value} |" for name, value in rows.items())]
    )
