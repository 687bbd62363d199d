"""What holds for every demo task: pools apart, the same items for the same seed, references that are right."""

import re
from typing import Any

import pytest

from amalgam_demo.tables import code_templates, json_pools, json_templates, sql_templates
from amalgam_demo.tables import domains as all_domains
from amalgam_demo.task_item import SPLITS
from amalgam_demo.tasks import TASKS, generate
from amalgam_demo.tasks_code import HANDLES

TEMPLATES = {"sql": sql_templates(), "code": code_templates(), "json": json_templates()}
TASK_NAMES = sorted(TASKS)
PAIRS = [("train", "dev"), ("train", "test"), ("dev", "test")]


@pytest.mark.parametrize("task", TASK_NAMES)
def test_the_same_seed_gives_the_same_items_and_another_seed_others(task: Any) -> None:
    first, again, other = (generate(task, "test", 40, seed) for seed in (3, 3, 4))
    assert first == again
    assert {item.prompt for item in first} != {item.prompt for item in other}


@pytest.mark.parametrize("task", TASK_NAMES)
def test_every_template_takes_its_turn(task: Any) -> None:
    names = [template.name for template in TEMPLATES[task]]
    items = generate(task, "dev", 2 * len(names), seed=1)
    assert sorted(item.template for item in items) == sorted(names * 2)
    assert len(set(names)) == len(names) >= 12


@pytest.mark.parametrize("task", TASK_NAMES)
@pytest.mark.parametrize(("left", "right"), PAIRS)
def test_splits_share_no_wording(task: Any, left: Any, right: Any) -> None:
    wordings = {split: {line for row in TEMPLATES[task] for line in row.wordings[split]} for split in SPLITS}
    assert not wordings[left] & wordings[right]
    for row in TEMPLATES[task]:
        assert row.wordings[left]
        assert row.wordings[right]


@pytest.mark.parametrize("task", TASK_NAMES)
@pytest.mark.parametrize(("left", "right"), PAIRS)
def test_splits_share_no_entity(task: Any, left: Any, right: Any) -> None:
    drawn = {}
    for split in (left, right):
        drawn[split] = frozenset().union(*(item.entities for item in generate(task, split, 300, seed=5)))
    assert not drawn[left] & drawn[right]


@pytest.mark.parametrize(("left", "right"), PAIRS)
def test_pools_share_no_entity_even_where_a_draw_would_not_show_it(left: Any, right: Any) -> None:
    domains = {split: frozenset().union(*(domain.entities for domain in all_domains()[split])) for split in SPLITS}
    assert not domains[left] & domains[right]
    assert not set(HANDLES[left]) & set(HANDLES[right])
    for pools in (json_pools().keys, json_pools().values):
        everything = {split: {value for pool in pools.values() for value in pool[split]} for split in SPLITS}
        assert not everything[left] & everything[right]


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[a-z]{4,}", text.lower()))


@pytest.mark.parametrize("task", TASK_NAMES)
def test_entities_and_wordings_are_all_a_prompt_speaks_of(task: Any) -> None:
    """A word that is neither may be one that training has seen; such grammar is a short list."""
    known = words_of(" ".join(line for row in TEMPLATES[task] for line in row.wordings["test"])) | GRAMMAR[task]
    for item in generate(task, "test", 100, seed=2):
        assert words_of(item.prompt) - words_of(" ".join(item.entities)) - known == set()


GRAMMAR = {
    "sql": words_of("CREATE TABLE TEXT INTEGER Question Answer with query only"),
    "code": words_of("Write Python function that Answer with code only"),
    "json": words_of("Text Shape Answer with JSON only string integer number boolean null YYYY")
    | words_of("January February March April June July August September October November December"),
}


@pytest.mark.parametrize("task", TASK_NAMES)
def test_prompts_and_references_are_short_enough_for_two_cores(task: Any) -> None:
    for item in generate(task, "test", 200, seed=6):
        assert len(item.prompt) < 420
        assert len(item.reference) < 220


@pytest.mark.parametrize("task", ["sql", "json"])
def test_every_reference_is_right_by_its_own_metric(task: str) -> None:
    for split in SPLITS:
        items = generate(task, split, 3 * len(TEMPLATES[task]), seed=7)
        assert [item.reference for item in items if not TASKS[task].score(item, item.reference)] == []


@pytest.mark.parametrize("task", ["sql", "json"])
def test_a_fence_is_forgiven_and_talk_is_not(task: str) -> None:
    item = generate(task, "test", 1, seed=8)[0]
    assert TASKS[task].score(item, f"```{task}\n{item.reference}\n```\n")
    assert not TASKS[task].score(item, f"Here you are:\n```{task}\n{item.reference}\n```")
    assert not TASKS[task].score(item, "")


@pytest.mark.parametrize("task", ["sql", "json"])
def test_answers_of_other_items_are_wrong(task: str) -> None:
    """A metric that is too kind would accept some neighbour's answer."""
    items = generate(task, "test", len(TEMPLATES[task]), seed=9)
    swapped = zip(items, items[1:] + items[:1], strict=True)
    assert not any(TASKS[task].score(item, other.reference) for item, other in swapped)
