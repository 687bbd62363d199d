"""What vLLM spawns, over a stand-in for it: who is given tokens for fetching, how, and until when."""

import os
import sys
from multiprocessing.connection import Connection

import pytest

from amalgam.engine.spawned import SpawnedContext, secrets_beside
from tests.unit.engine.cpu.conftest import TOKEN, Serve, assert_only_loading, holders

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="who has what is read in /proc")


def test_spawned_processes_have_a_token_only_while_they_load(serve: Serve) -> None:
    _, seen = serve("2", "spawned")
    assert seen["core"]["parent"] == seen["pid"]
    assert seen["worker"]["parent"] == seen["core"]["pid"]
    assert_only_loading(seen)


def test_no_process_below_the_server_shows_the_token(serve: Serve) -> None:
    """The library's own processes among them, which track what the others share."""
    _, seen = serve("2", "spawned")
    assert holders(seen["pid"]) == {seen["pid"]}


def told_of(pipe: Connection) -> None:
    pipe.send((os.environ.get("HF_TOKEN"), os.environ.get("PATH")))


def test_a_process_that_loads_nothing_is_given_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    context = SpawnedContext(loads=False)
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=told_of, args=(writer,))
    process.start()
    assert reader.recv() == (None, os.environ["PATH"])
    process.join()
    assert os.environ["HF_TOKEN"] == TOKEN


def test_a_start_that_fails_takes_nothing_away() -> None:
    environment = {"HF_TOKEN": TOKEN, "GITHUB_TOKEN": "of nobody", "PATH": "/bin"}
    before = dict(environment)
    meanwhile: list[dict[str, str]] = []

    def fail() -> None:
        with secrets_beside(environment):
            meanwhile.append(dict(environment))
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        fail()
    assert meanwhile == [{"PATH": "/bin"}]
    assert environment == before
