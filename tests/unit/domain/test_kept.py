"""What a merge keeps: the figures, what they bound, and what is said of them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amalgam.domain.evaluation import EvaluationItem
from amalgam.domain.expression import parse_expression
from amalgam.domain.kept import SKILL_LOST, AnswerRead, InputKept, input_kept, share, worst
from amalgam.domain.recipe import Recipe, RecipeInput
from amalgam.domain.skill_probe import KeptRecord, ProbeOrder, SkillProbe, kept_inputs, unmeasured
from amalgam.errors.skills import ProbeRefused

ITEM = EvaluationItem(prompt="How many?")


@st.composite
def reads(draw: st.DrawFn) -> AnswerRead:
    tokens = draw(st.integers(1, 60))
    nats = st.floats(-80, 0, allow_nan=False)
    agreed = draw(st.integers(0, tokens))
    alike = tokens if agreed == tokens else draw(st.integers(0, agreed))
    return AnswerRead(tokens, agreed, alike, draw(nats), draw(nats))


@given(st.lists(reads(), min_size=1, max_size=12))
def test_shares_are_shares_and_whole_answers_are_no_more_than_tokens(answers: list[AnswerRead]) -> None:
    kept = input_kept(answers)
    assert 0 <= kept.answers <= kept.alike + 1e-12 <= kept.agreement + 2e-12 <= 1 + 3e-12
    assert 0 <= kept.likelihood <= 1
    assert math.isclose(kept.likelihood, math.exp(-max(kept.divergence, 0.0)))
    assert (kept.prompts, kept.tokens) == (len(answers), sum(one.tokens for one in answers))


@given(st.lists(reads(), min_size=1, max_size=8))
def test_the_order_of_answers_changes_nothing_and_twice_the_same_neither(answers: list[AnswerRead]) -> None:
    kept, turned, twice = input_kept(answers), input_kept(answers[::-1]), input_kept([*answers, *answers])
    for other in (turned, twice):
        assert kept.agreement == pytest.approx(other.agreement)
        assert kept.answers == pytest.approx(other.answers)
        assert kept.divergence == pytest.approx(other.divergence)


def test_an_input_that_reads_its_own_answers_keeps_all() -> None:
    kept = input_kept([AnswerRead(5, 5, 5, -1.0, -1.0), AnswerRead(1, 1, 1, -0.2, -0.2)])
    assert (kept.agreement, kept.alike, kept.answers, kept.likelihood, kept.divergence) == (1, 1, 1, 1, 0)


def test_every_answer_counts_alike_however_long() -> None:
    kept = input_kept([AnswerRead(100, 100, 100, 0.0, 0.0), AnswerRead(2, 1, 0, 0.0, -2.04)])
    assert kept.agreement == 0.75
    assert (kept.alike, kept.answers) == (0.5, 0.5)
    assert kept.divergence == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("sql + 0.5*json", True),
        ("ties(sql, json, code)", True),
        ("sql", False),
        ("0.5*sql", False),
        ("sql - 0.3*json", False),
        ("sql + 0*json", False),
    ],
)
def test_a_merge_without_prompts_is_told_of_where_it_keeps_several_inputs(expression: str, said: bool) -> None:
    found = unmeasured(parse_expression(expression))
    assert [text.partition(":")[0] for text in found] == ["kept_unmeasured"] * said
    assert all(len(text.split(". ")) == 1 for text in found)


def kept_of(value: float) -> InputKept:
    return InputKept(
        prompts=10, tokens=50, agreement=value, alike=value, answers=value, likelihood=value, divergence=1.0
    )


def test_the_worst_input_is_named() -> None:
    assert worst({"b@1": kept_of(0.4), "a@1": kept_of(0.9), "c@1": kept_of(0.4)}) == ("b@1", share(kept_of(0.4)))


def test_a_lost_skill_is_warned_of_by_name_figure_and_next_step() -> None:
    lost, fine = SKILL_LOST - 0.2, SKILL_LOST
    record = KeptRecord(probe_digest="d", inputs={"sql@1": kept_of(lost), "json@2": kept_of(fine)})
    (warning,) = record.warnings()
    assert warning.startswith("skill_lost: ")
    assert "sql@1" in warning
    assert f"{lost:.2f} of the probability" in warning
    assert f"below {SKILL_LOST}" in warning
    assert "fit the merge to prompts of its inputs, give sql@1 a larger weight" in warning
    unknown = KeptRecord(probe_digest="d", inputs={}, failure="the engine said no.")
    assert unknown.warnings() == ("kept_unknown: what the merge keeps was not measured: the engine said no.",)
    assert unknown.worst is None


def test_what_is_warned_of_is_the_probability_of_answers_and_what_is_required_are_whole_ones() -> None:
    departs = kept_of(1.0).model_copy(update={"answers": 0.1})
    unlikely = kept_of(1.0).model_copy(update={"likelihood": 0.5})
    record = KeptRecord(probe_digest="d", inputs={"departs@1": departs, "unlikely@1": unlikely})
    assert [text.partition("@1")[0].split()[-1] for text in record.warnings()] == ["unlikely"]
    assert record.worst == ("departs@1", 0.1)


def recipe(**weights: float) -> Recipe:
    inputs = tuple(RecipeInput(adapter=name, weight=weight) for name, weight in weights.items())
    return Recipe(method="task_arithmetic", inputs=inputs)


def test_what_is_subtracted_is_not_to_be_kept() -> None:
    assert kept_inputs(recipe(sql=1, json=-0.5, code=0)) == ("sql",)
    filtered = Recipe(inputs=(RecipeInput(adapter="sql", weight=(0.1, 0.9)),))
    assert kept_inputs(filtered) == ("sql",)


@pytest.mark.parametrize("name", ["sql", "sql@3", "base:sql"])
def test_prompts_are_of_exact_versions_however_the_input_is_spelled(name: str) -> None:
    refs = {"base:sql": "sql@3", "json@1": "json@1"}
    asked = Recipe(inputs=(RecipeInput(adapter="base:sql"), RecipeInput(adapter="json@1")))
    probe = ProbeOrder({name: (ITEM,)}, 64, None).pinned(asked, refs)
    assert probe == SkillProbe(prompts={"sql@3": (ITEM,)}, max_tokens=64)


def test_prompts_of_what_is_no_input_are_refused_and_missing_ones_where_all_are_required() -> None:
    refs = {"sql": "sql@1", "json": "json@1"}
    with pytest.raises(ProbeRefused, match="'code' is no input"):
        ProbeOrder({"code": (ITEM,)}, 64, None).pinned(recipe(sql=1, json=1), refs)
    with pytest.raises(ProbeRefused, match="twice"):
        ProbeOrder({"sql": (ITEM,), "sql@1": (ITEM,)}, 64, None).pinned(recipe(sql=1, json=1), refs)
    some = ProbeOrder({"sql": (ITEM,)}, 64, 0.9)
    with pytest.raises(ProbeRefused, match="'json' has none"):
        some.pinned(recipe(sql=1, json=1), refs)
    assert some.pinned(recipe(sql=1, json=-1), refs).required == 0.9


def test_a_probe_that_asks_anything_else_has_another_digest() -> None:
    one = SkillProbe(prompts={"sql@1": (ITEM,)}, max_tokens=64)
    assert one.digest() == SkillProbe.model_validate(one.model_dump(mode="json")).digest()
    others = [
        one.model_copy(update={"max_tokens": 65}),
        one.model_copy(update={"required": 0.5}),
        one.model_copy(update={"prompts": {"sql@2": (ITEM,)}}),
        one.model_copy(update={"prompts": {"sql@1": (ITEM, ITEM)}}),
    ]
    assert len({one.digest(), *(other.digest() for other in others)}) == 5
