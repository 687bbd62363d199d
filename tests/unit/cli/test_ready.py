"""What `amalgam serve` does at the moment in which the engine answers."""

import gc
import signal
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import amalgam.app
import amalgam.cli.http_server
import amalgam.telemetry.logs
from amalgam.cli.serve import CommandLine, serve_until_stopped
from amalgam.settings import Settings
from amalgam.wiring.parts import Start


def test_what_the_start_has_made_is_left_out_of_later_collections(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A collection over all that vLLM imports stops the event loop, and every stream, for a third of a second.

    What is left out at the end of the process is what libraries in C++ report as leaked.
    """
    started: list[Start] = []
    left_out: list[int] = []

    def run(sockets: object) -> None:
        started[0].on_ready({"load": 1.0})
        left_out.append(gc.get_freeze_count())

    server = SimpleNamespace(run=run, start_failure=None, started=True)

    def create_app(settings: Any, args: Any, start: Start, engine_factory: Any = None) -> Any:
        started.append(start)
        return SimpleNamespace()

    monkeypatch.setattr(amalgam.app, "create_app", create_app)
    monkeypatch.setattr(amalgam.cli.http_server, "http_server", lambda app, settings: server)
    monkeypatch.setattr(amalgam.telemetry.logs, "configure_logging", lambda form: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    settings = Settings(store=tmp_path / "store")
    line = CommandLine(settings, SimpleNamespace(), {})  # type: ignore[arg-type]
    gc.unfreeze()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        serve_until_stopped(line, listener, 0.0, None, is_demo=False)
    assert left_out[0] > 10_000
    assert gc.get_freeze_count() == 0
