"""``amalgam eval``: each task on its own, whatever model is named."""

import json

import httpx
import pytest
from typer.testing import CliRunner

from amalgam.__main__ import app
from amalgam.cli import demo
from amalgam.demo.tasks import generate

RUN = CliRunner()
REFERENCES = {item.prompt: item.reference for task in ("json", "sql") for item in generate(task, "dev", 4, seed=0)}


@pytest.fixture
def asked(monkeypatch):
    """A server whose one blend knows JSON; gives the models that it was asked for."""
    models = []

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        models.append(body["model"])
        text = REFERENCES[body["messages"][0]["content"]]
        return httpx.Response(200, json={"choices": [{"message": {"content": text if "{" in text else "no"}}]})

    transport = httpx.MockTransport(answer)
    monkeypatch.setattr(demo, "connect", lambda url, key: httpx.AsyncClient(base_url=url, transport=transport))
    return models


def test_an_expression_is_scored_on_every_task(asked):
    result = RUN.invoke(app, ["eval", "json", "sql", "--model", "json + 0.5*sql", "--items", "4", "--split", "dev"])
    assert result.exit_code == 0, result.output
    assert "4 of 4 = 100.0 %" in result.output
    assert "0 of 4 = 0.0 %" in result.output
    assert asked == ["json + 0.5*sql"] * 8


def test_an_unknown_task_is_refused_before_anything_is_asked(asked):
    result = RUN.invoke(app, ["eval", "json", "poems", "--model", "json", "--items", "4"])
    assert result.exit_code == 2
    assert asked == []
