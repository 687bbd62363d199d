"""The verbs of ``amalgam demo``: what they refuse, and that a score ends in a table and in the card."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from amalgam.cli.demo import demo_commands
from amalgam_demo import cli
from amalgam_demo.card import Card, read_card, write_card
from amalgam_demo.recipes import RECIPES
from amalgam_demo.tasks import generate

RUN = CliRunner()
VERBS = demo_commands()
REFERENCES = {item.prompt: item.reference for item in generate("json", "test", 16, seed=0)}
SQL = {item.prompt: item.reference for item in generate("sql", "dev", 4, seed=0)}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose adapter is always right and whose base model never is."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(
                200, json={"data": [{"id": "tiny", "parent": None}, {"id": "json", "parent": "tiny"}]}
            )
        body = json.loads(request.content)
        text = REFERENCES[body["messages"][0]["content"]] if body["model"] == "json" else "Sure!"
        return httpx.Response(200, json={"choices": [{"message": {"content": text}}]})

    transport = httpx.MockTransport(answer)
    monkeypatch.setattr(cli, "connect", lambda url, key: httpx.AsyncClient(base_url=url, transport=transport))


def test_a_score_is_a_table_with_a_row_per_skill_and_a_sum(server: Any) -> None:
    result = RUN.invoke(VERBS, ["score", "json", "--items", "16"])
    assert result.exit_code == 0, result.output
    assert "16 of 16 = 100.0 %" in result.output
    assert "0 of 16 = 0.0 %" in result.output
    assert "weather" in result.output


def test_a_score_goes_into_the_card_only_when_asked(
    server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cli, "CHECKOUT", tmp_path)
    folder = tmp_path / "json"
    folder.mkdir()
    write_card(Card(recipe=RECIPES["json"], versions={}, final_loss=0.0), folder)
    RUN.invoke(VERBS, ["score", "json", "--items", "16"])
    assert read_card(folder).scores == {}
    RUN.invoke(VERBS, ["score", "json", "--items", "16", "--card"])
    scores = read_card(folder).scores
    assert (scores["adapter"].right, scores["base"].right, scores["base"].total) == (16, 0, 16)
    assert scores["adapter"].through == f"amalgam {version('amalgam')}"


def test_misses_are_shown_when_asked(server: Any) -> None:
    result = RUN.invoke(VERBS, ["score", "json", "--items", "4", "--model", "tiny", "--no-base", "--misses", "1"])
    assert "got:    Sure!" in result.output
    assert result.output.count("wanted:") == 1


def test_a_server_that_is_not_there_ends_in_one_line() -> None:
    result = RUN.invoke(VERBS, ["score", "json", "--items", "2", "--no-base", "--url", "http://127.0.0.1:9"])
    assert result.exit_code == 1
    assert "demo_server_failed" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("verb", ["train", "score"])
def test_an_unknown_task_is_refused_with_the_known_ones(verb: str) -> None:
    result = RUN.invoke(VERBS, [verb, "poetry"])
    assert result.exit_code == 1
    assert "unknown_demo_task" in result.output
    assert "code, json, sql" in result.output


def test_an_unknown_split_is_refused() -> None:
    result = RUN.invoke(VERBS, ["score", "sql", "--split", "final"])
    assert result.exit_code == 2
    assert "final" in result.output


def test_a_changed_rank_keeps_the_scaling() -> None:
    changed = RECIPES["sql"].changed(rank=32, steps=None, seed=3)
    assert (changed.rank, changed.alpha, changed.seed, changed.steps) == (32, 64, 3, RECIPES["sql"].steps)


def test_several_tasks_are_scored_one_after_the_other_on_whatever_model_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        asked.append(body["model"])
        text = SQL.get(body["messages"][0]["content"], "no")
        return httpx.Response(200, json={"choices": [{"message": {"content": text}}]})

    transport = httpx.MockTransport(answer)
    monkeypatch.setattr(cli, "connect", lambda url, key: httpx.AsyncClient(base_url=url, transport=transport))
    words = ["score", "json", "sql", "--model", "sql + 0.5*json", "--items", "4", "--split", "dev", "--no-base"]
    result = RUN.invoke(VERBS, words)
    assert result.exit_code == 0, result.output
    assert "0 of 4 = 0.0 %" in result.output
    assert "4 of 4 = 100.0 %" in result.output
    assert asked == ["sql + 0.5*json"] * 8


def test_without_the_package_of_tasks_the_demo_can_still_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = RUN.invoke(demo_commands(), ["--help"])
    assert "install" in result.output
    assert "train" not in result.output
