"""The quality table asks what it says it asks, and reads the answers right."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from amalgam.api.admin.merge_models import MergeBody
from amalgam.api.admin.sweep_models import SearchBody
from amalgam.domain.expression import parse_expression
from amalgam.domain.recipe import Recipe, layer_of
from amalgam.merge.methods import METHODS, complete
from amalgam_demo.tasks import generate
from loadtests.quality import Book, merged
from loadtests.quality_contenders import ADAPTERS, LAYERS, SEED, first_tries, fits, searches, singles
from loadtests.quality_page import best, quality_page


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


def test_fits_are_what_the_server_takes_and_ask_no_held_out_question() -> None:
    held_out = {item.prompt for name in ADAPTERS for item in generate(name, "test", 200, SEED)}
    for contender in fits():
        body = MergeBody.model_validate({"name": contender.model, "inputs": ADAPTERS, "fit": contender.fit})
        assert body.fit is not None
        given = body.fit.prompts or body.fit.items
        assert {name: len(rows) for name, rows in given.items()} == dict.fromkeys(ADAPTERS, 10)
        asked = {str(row) for rows in body.fit.prompts.values() for row in rows}
        asked |= {item.messages[0]["content"] for rows in body.fit.items.values() for item in rows if item.messages}
        assert len(asked) > 20
        assert not asked & held_out


@pytest.mark.parametrize("ending", ["published", "failed"])
async def test_a_fit_is_waited_for(ending: str) -> None:
    states = iter(["queued", "running", ending])

    def answered(request: httpx.Request) -> httpx.Response:
        job = {"id": "7", "state": next(states), "error": {"code": "fit_unread"}}
        return httpx.Response(202, json={"job": job}) if request.method == "POST" else httpx.Response(200, json=job)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answered), base_url="http://x") as client:
        if ending == "published":
            await merged(client, fits()[0])
        else:
            with pytest.raises(SystemExit, match="fit_unread"):
                await merged(client, fits()[0])
    assert next(states, None) is None
