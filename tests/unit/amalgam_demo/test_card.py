"""The card says what was measured, and nothing that was not."""

from pathlib import Path

from amalgam_demo.card import Card, Measurement, read_card, render, write_card
from amalgam_demo.recipes import RECIPES

CARD = Card(recipe=RECIPES["sql"], versions={"torch": "9.9"}, final_loss=0.01)


def test_a_card_without_scores_says_so() -> None:
    assert render(CARD).count("not measured yet") == 2


def test_a_card_survives_its_file(tmp_path: Path) -> None:
    card = CARD.with_score("base", Measurement(13, 200, "test", 0, "amalgam 1.2"))
    write_card(card, tmp_path)
    assert read_card(tmp_path) == card
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == render(card)


def test_a_measurement_replaces_the_one_before_and_no_other() -> None:
    first, second = Measurement(1, 200, "test", 0, "a"), Measurement(2, 200, "test", 0, "a")
    card = CARD.with_score("base", first).with_score("adapter", first).with_score("adapter", second)
    assert card.scores == {"base": first, "adapter": second}
    text = render(card)
    assert "| base | 1 | 200 | 0.5 % |" in text
    assert "| adapter | 2 | 200 | 1.0 % |" in text


def test_the_recipe_is_complete() -> None:
    text = render(CARD)
    for value in CARD.recipe.as_dict().values():
        assert f"| {value} |" in text
