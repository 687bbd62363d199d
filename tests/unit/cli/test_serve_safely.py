"""What `serve` does before it starts anything: it refuses an unsafe address, and forgets the keys."""

import os
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from amalgam.cli import serve
from amalgam.engine import environment
from amalgam.engine.cpu import fork_server
from amalgam.errors.requests import UnsafeBinding
from amalgam.settings import Settings, secret_names, variable


class Reached(BaseException):
    """The next step would have begun."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is started and nothing is imported: whatever comes after the checks says that it was reached."""

    def reached(*_: Any, **__: Any) -> None:
        raise Reached

    monkeypatch.setattr(environment, "prepare_environment", reached)
    monkeypatch.setattr(fork_server, "ForkServer", reached)


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
@pytest.mark.parametrize("keys", [{}, {"api_keys": "b"}, {"metrics_key": "m"}], ids=str)
def test_an_address_that_others_reach_needs_the_admin_key(host: str, keys: dict[str, str]) -> None:
    with pytest.raises(UnsafeBinding):
        serve.run(Settings(host=host, **keys), None, None, [])
    # Client keys can be created with it; until there are some, nobody else is let in.
    with pytest.raises(Reached):
        serve.run(Settings(host=host, admin_key="a", **keys), None, None, [])
    with pytest.raises(Reached):
        serve.run(Settings(host="127.0.0.1", **keys), None, None, [])


@pytest.mark.usefixtures("started")
def test_the_command_says_so_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in map(variable, secret_names()):
        monkeypatch.delenv(name, raising=False)
    app = typer.Typer()
    app.command()(serve.serve)
    result = CliRunner().invoke(app, ["--host", "0.0.0.0"])
    assert result.exit_code == 1
    assert "AMALGAM_ADMIN_KEY" in result.output


def test_the_keys_are_forgotten_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMALGAM_ADMIN_KEY", "ak_a")
    monkeypatch.setenv("AMALGAM_API_KEYS", "ak_b")
    seen: list[set[str]] = []

    def look(*_: Any) -> None:
        seen.append(set(map(variable, secret_names())) & os.environ.keys())
        raise Reached

    monkeypatch.setattr(environment, "prepare_environment", look)
    with pytest.raises(Reached):
        serve.run(Settings(), None, None, [])
    assert seen == [set()]
