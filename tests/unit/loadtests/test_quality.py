"""The quality table asks what it says it asks, and reads the answers right."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amalgam.api.admin.sweep_models import SearchBody
from amalgam.domain.expression import parse_expression
from amalgam.domain.recipe import Recipe, layer_of
from amalgam.merge.methods import METHODS, complete
from loadtests.quality import Book
from loadtests.quality_contenders import ADAPTERS, LAYERS, first_tries, searches, singles
from loadtests.quality_page import best, quality_page
from loadtests.quality_weights import WeightedSum, averaged, recipe, take_up


def row(method: str, model: str, setting: str, *right: int) -> dict[str, Any]:
    return {"method": method, "setting": setting, "model": model, "items": 10,
            "right": dict(zip(ADAPTERS, right, strict=True)), "seconds": 1.0}  # fmt: skip


SCORES = [
    row("", "smollm2", "base model", 1, 0, 0),
    row("", "sql", "adapter alone", 8, 2, 0),
    row("", "code", "adapter alone", 1, 10, 0),
    row("", "json", "adapter alone", 0, 0, 5),
    row("linear", "linear(sql, code, json)", "weights 1, defaults", 8, 9, 1),
    row("ties", "ties(code@1, json@1, sql@1; lambda=1.2)", "best of the sweep “ties”", 6, 7, 4),
]


def test_every_method_of_the_table_is_tried() -> None:
    tried = {contender.method for contender in first_tries()}
    assert tried == set(METHODS) - {"cat"}


def test_every_merge_is_a_complete_recipe_over_all_three_adapters() -> None:
    for contender in first_tries():
        named: set[str] = set()
        spoken = {contender.model, *(one for one in contender.recipes.values() if isinstance(one, str))}
        for text in spoken - contender.recipes.keys():
            read = parse_expression(text)
            complete(read)
            assert ("seed=" in text) == METHODS[read.method].random, "a blend of chance has to name its seed"
            named |= set(read.adapters)
        for spelled in contender.recipes.values():
            if not isinstance(spelled, str):
                full = Recipe.model_validate(spelled)
                complete(full)
                named |= set(full.adapters)
        assert named - contender.recipes.keys() == set(ADAPTERS)


def test_passthrough_takes_every_layer_from_one_adapter() -> None:
    (thirds,) = (c.recipes["by-layers"] for c in first_tries() if c.method == "passthrough")
    full = Recipe.model_validate(thirds)
    for layer in range(LAYERS):
        module = f"model.layers.{layer}.mlp.up_proj"
        assert layer_of(module) == layer
        assert sorted(entry.weight_at(module, LAYERS) for entry in full.inputs) == [0.0, 0.0, 1.0]


def test_searches_are_what_the_server_takes() -> None:
    for search in searches(6):
        body = SearchBody.model_validate(json.loads(json.dumps(search.body)))
        assert body.trials == 6
        assert set(body.methods) <= set(METHODS)


def test_the_best_merge_keeps_most_of_its_worst_task() -> None:
    found = best({"scores": SCORES})
    assert found["method"] == "ties"
    page = quality_page({
        "machine": "m", "versions": {"python": "3"}, "date": "d", "command": "c", "seed": 1, "scores": SCORES,
        "sweeps": [],
    })  # fmt: skip
    assert "its worst task keeps 70.0% (target 95%: missed)" in page
    assert "| `ties` | best of the sweep “ties”: `ties(code, json, sql; lambda=1.2)` | 6 | 7 | 4 | 70% | 75% |" in page
    assert page.index("`ties`") < page.index("`linear`")


def test_a_report_is_gone_on_from_without_its_date(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text(json.dumps({"date": "then", "command": "c", "scores": SCORES, "sweeps": []}))
    book = Book(file)
    assert book.rows == {"scores": SCORES, "sweeps": []}
    book.add("sweeps", {"search": "sums"})
    assert Book(file).has("sweeps", search="sums")


def test_singles_are_the_base_and_each_adapter() -> None:
    assert [one.model for one in singles("base")] == ["base", *ADAPTERS]


def test_learned_weights_become_the_recipe_that_computes_the_same() -> None:
    chance = torch.Generator().manual_seed(3)
    sums = {}
    for module in ("model.layers.1.mlp.up_proj", "model.layers.11.mlp.up_proj"):
        factors = [(torch.randn(2, 5, generator=chance), torch.randn(4, 2, generator=chance)) for _ in ADAPTERS]
        one = WeightedSum(nn.Linear(5, 4), factors)
        one.weights.data = torch.randn(3, generator=chance).round(decimals=3)
        inputs = torch.randn(7, 5, generator=chance)
        dense = sum(w * b @ a for w, (a, b) in zip(one.weights, factors, strict=True))
        assert torch.allclose(one(inputs), one.linear(inputs) + inputs @ dense.T, atol=1e-5)
        sums[module] = one
    learned = recipe(sums, 3)
    assert learned.pop("steps") == 3
    assert "3 steps" in learned.pop("setting")
    full = Recipe.model_validate(learned)
    for module, one in sums.items():
        for at, entry in enumerate(full.inputs):
            assert abs(entry.weight_at(module, LAYERS) - float(one.weights.detach()[at])) < 1e-6
    kept = {module: one.weights.detach().clone() for module, one in sums.items()}
    for one in sums.values():
        one.weights.data.zero_()
    take_up(sums, learned)
    assert all(torch.allclose(one.weights, kept[module], atol=1e-4) for module, one in sums.items())


def test_averaged_weights_are_the_mean_and_say_of_what() -> None:
    def stage(steps: int, value: float) -> dict[str, Any]:
        inputs = [{"adapter": "a", "weight": [{"filter": "layers.0.q_proj", "value": value}]}]
        return {"method": "task_arithmetic", "inputs": inputs, "setting": "", "steps": steps}

    early, late = stage(160, 0.5), stage(360, 1.0)
    found = averaged([early, late])
    assert found["inputs"][0]["weight"][0]["value"] == 0.75
    assert "160 and 360 steps" in found["setting"]
    assert late == stage(360, 1.0)
