"""`amalgam serve`: the server with an embedded engine, on the demo model or on any other."""

import gc
import json
import os
import signal
import socket
import sys
import threading
import time
from argparse import Namespace
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from amalgam.cli.consoles import on_stderr
from amalgam.cli.one_line import ended
from amalgam.cli.tls import tls_context
from amalgam.cli.vllm_environment import unheeded
from amalgam.cli.vllm_flags import given_flags, left_to_vllm, lora_sources, refuse_without_effect, settled
from amalgam.engine.vllm_arguments import our_flags, parsed, serve_parser
from amalgam.errors import AmalgamError
from amalgam.errors.adapters import BaseModelUnreadable
from amalgam.settings import Settings, settle
from amalgam.store.base_folder import why_incomplete
from amalgam.store.checkpoint_tensors import needs_sixteen_bits

if TYPE_CHECKING:
    from amalgam.cli.http_server import HttpServer
    from amalgam.engine.cpu.fork_server import ForkServer
    from amalgam.wiring.parts import EngineFactory

DEMO_NAME = "smollm2"


def serve(
    model: Annotated[
        str | None, typer.Argument(help="folder or hub id of the base model; without it: the demo model")
    ] = None,
    vllm_flags: Annotated[list[str] | None, typer.Argument(help="after --: any flag of vLLM's server")] = None,
    store: Annotated[str | None, typer.Option(help="folder of adapters and registry, or s3://bucket/prefix")] = None,
    served_model_name: Annotated[str | None, typer.Option(help="name of the base model in requests")] = None,
    host: Annotated[str | None, typer.Option(help="address to listen on")] = None,
    port: Annotated[int | None, typer.Option(help="port to listen on; 0 picks one")] = None,
    config: Annotated[Path | None, typer.Option(help="file of settings, in TOML; variables win over it")] = None,
    engine: Annotated[str | None, typer.Option(help="engines of amalgam engine, as ray://127.0.0.1:6379")] = None,
) -> None:
    """Serve the base model and its adapters."""
    given: dict[str, Any] = {"store": store, "host": host, "port": port, "config": config, "engine_address": engine}
    settings = Settings(**{key: value for key, value in given.items() if value is not None})
    flags = list(vllm_flags or [])
    if model is not None and model.startswith("-"):
        # typer passes on what stands behind `--` as arguments in order, the model's place included.
        flags, model = [model, *flags], None
    try:
        if settings.engine.engine_address:
            from amalgam.cli.front import run_front

            run_front(settings, model, served_model_name, flags)
        else:
            run(settings, model, served_model_name, flags)
    except AmalgamError as error:
        raise ended(error.code, error.message, 1) from None


def run(settings: Settings, model: str | None, served_model_name: str | None, flags: list[str]) -> None:
    """Everything between the command line and uvicorn."""
    from amalgam.api.auth import require_safe_binding
    from amalgam.engine.cpu.fork_server import ForkServer, predicted_environment
    from amalgam.engine.environment import prepare_environment
    from amalgam.store.hub import local_model
    from amalgam.telemetry.logs import VLLM_JSON_CONFIG

    if not flags:
        # Flags may change the address and add keys; `listen` asks again in any case.
        require_safe_binding(settings)
    for sentence in unheeded(os.environ):
        on_stderr().print(sentence, style="yellow", markup=False, soft_wrap=True)
    # Before anything is started: the engine's processes read settings from it, and none of them needs a key.
    settle(os.environ, settings)
    is_demo = model is None
    names = base_names(model)
    began = time.monotonic()
    prepare_environment(VLLM_JSON_CONFIG if settings.logs.log_format == "json" else None, settings.http.media_pixels)
    # As early as can be: what it imports beside us is most of what the engine's start would take.
    predicted = predicted_environment(os.environ) if settings.engine.engine_start == "forked" else None
    fork_server = None if predicted is None else ForkServer(predicted)
    if fork_server is not None:
        fork_server.start()
    if model is None:
        from amalgam.demo.base_model import ensure_base_model

        with on_stderr().status("Preparing the demo model") as status:
            model = str(ensure_base_model(settings.storage.cache_dir, lambda text: status.update(text)))
    else:
        model = str(local_model(model))
    name = served_model_name or names[0]
    line = command_line(settings, model, name, flags, is_demo=is_demo)
    require_whole(Path(model), line.args)
    if line.args.served_model_name == names[:1]:
        line.args.served_model_name = names
    tls_context(line.settings.tls)
    listener = listen(line.settings)
    serve_until_stopped(line, listener, began, fork_server, is_demo=is_demo)


def require_whole(folder: Path, args: Namespace) -> None:
    """Raise BaseModelUnreadable where ``folder`` lacks what vLLM is to read from it, before anything is started."""
    own_tokenizer = args.tokenizer is None and not args.skip_tokenizer_init
    lacks = why_incomplete(folder, weights=args.load_format == "auto", tokenizer=own_tokenizer)
    if folder.is_dir() and lacks is not None:
        raise BaseModelUnreadable(f"{folder} {lacks}")


def base_names(model: str | None) -> list[str]:
    """What a base model is called where nobody chose a name: of a hub id its last part, and the id itself.

    Clients of vLLM's own server ask for the id that the server was given.
    """
    if model is None:
        return [DEMO_NAME]
    if Path(model).is_dir():
        return [Path(model).name.lower()]
    hub_id = model.partition("@")[0]
    return [Path(hub_id).name.lower(), hub_id]


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What the settings and the flags after ``--`` come to: for this server, for vLLM, and the adapters they name."""

    settings: Settings
    args: Namespace
    lora_modules: dict[str, str]


def command_line(settings: Settings, model: str, name: str, flags: list[str], *, is_demo: bool) -> CommandLine:
    """VLLM's own parser over our defaults; what the user gives after ``--`` wins, because it comes last.

    Raises:
        FlagRefused, LoraModuleUnusable: a flag that would have no effect, or cannot have its effect.
    """
    from amalgam.api.admin.lora_compat import source_of

    ours = our_flags(settings, model, name, in_sixteen_bits=partial(needs_sixteen_bits, Path(model)), is_demo=is_demo)
    parser = serve_parser()
    said = given_flags(parser, flags)
    refuse_without_effect(said)
    args = parsed(parser, [*ours, *flags])
    return CommandLine(settled(settings, said), left_to_vllm(args), lora_sources(said, source_of))


def listen(settings: Settings) -> socket.socket:
    """Bind before the engine starts, so that a taken port is known at once. Raises UnsafeBinding, PortTaken."""
    from amalgam.api.auth import require_safe_binding

    require_safe_binding(settings)
    family = socket.AF_INET6 if ":" in settings.http.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.http.host, settings.http.port))
    except OSError as error:
        from amalgam.errors.requests import PortTaken

        listener.close()
        raise PortTaken(settings.http.port, error.strerror or "cannot bind") from None
    return listener


def serve_until_stopped(
    line: CommandLine,
    listener: socket.socket,
    began: float,
    fork_server: "ForkServer | None" = None,
    *,
    is_demo: bool,
    engine_factory: "EngineFactory | None" = None,
) -> None:
    """Serve until a signal comes.

    Args:
        began: monotonic time at which the start did.
        engine_factory: as of `create_app`.
    """
    from amalgam.app import create_app
    from amalgam.cli.http_server import http_server
    from amalgam.demo.adapters import demo_adapter_folders
    from amalgam.telemetry.logs import configure_logging
    from amalgam.wiring.parts import Start

    settings = line.settings
    configure_logging(settings.logs.log_format)
    url = _address(settings, listener.getsockname()[1])
    phases = _Phases(sys.stderr.isatty())

    def ready(startup_s: dict[str, float]) -> None:
        # What was imported and built stays: a collection that looked at all of it would stop every stream for a third
        # of a second, now and then.
        gc.freeze()
        phases.end()
        parts = {"command line": serving - began} | startup_s
        split = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in parts.items())
        took_s = time.monotonic() - began
        on_stderr().print(f"[green]Ready[/green] in {took_s:.1f} s ({split}): {escape(url)}", soft_wrap=True)
        if settings.http.console:
            on_stderr().print(f"In a browser: {url}/console/", soft_wrap=True, markup=False)
        if is_demo:
            _print_examples(url)

    def failed(error: BaseException) -> None:
        phases.end()
        failures.append(error)
        server.should_exit = True

    failures: list[BaseException] = []
    folders = demo_adapter_folders() if is_demo and settings.adapters.register_demo else {}
    start = Start(phases.show, ready, failed, folders, line.lora_modules, fork_server)
    app = create_app(settings, line.args, start, engine_factory=engine_factory)
    server = http_server(app, settings)
    # What came before is mostly vLLM's import, which its command line needs.
    serving = time.monotonic()
    _run_until_stopped(server, listener, failures)


def _address(settings: Settings, port: int) -> str:
    scheme = "http" if settings.tls.ssl_certfile is None else "https"
    return f"{scheme}://{settings.http.host if ':' not in settings.http.host else f'[{settings.http.host}]'}:{port}"


def _run_until_stopped(server: "HttpServer", listener: socket.socket, failures: list[BaseException]) -> None:
    from amalgam.engine.start_reason import start_reason
    from amalgam.errors.engine import EngineStartFailed

    # Having stopped in good order, uvicorn raises the signal again; with its default handler that would be a death.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    has_started = True
    try:
        server.run(sockets=[listener])
    except SystemExit:
        # So uvicorn ends where the application does not start.
        has_started = False
    finally:
        # What is kept from the collector until the end is counted as leaked, aloud, by libraries written in C++.
        gc.unfreeze()
    if failures:
        first = failures[0]
        # Those below it say what is wrong with one thing, and not that the engine did not start.
        raise first if type(first) is EngineStartFailed else EngineStartFailed(start_reason(first))
    if server.start_failure is not None:
        # Such as an adapter of --lora-modules that is refused.
        raise server.start_failure
    if not has_started or (not server.started and server.lifespan.should_exit):
        # A fault of this program, whose trace is in the log; whoever started it must not read success.
        raise typer.Exit(1)


class _Phases:
    """What the start is doing: a moving line on a terminal, plain lines elsewhere."""

    def __init__(self, is_terminal: bool) -> None:
        self._status: Any = on_stderr().status("Starting") if is_terminal else None
        self._lock = threading.Lock()
        if self._status is not None:
            self._status.start()

    def show(self, phase: str) -> None:
        """Say ``phase``."""
        with self._lock:
            if self._status is not None:
                self._status.update(f"{phase} …")
            else:
                on_stderr().print(f"{phase} …", markup=False, soft_wrap=True)

    def end(self) -> None:
        """Stop moving."""
        with self._lock:
            if self._status is not None:
                self._status.stop()
                self._status = None


def _print_examples(url: str) -> None:
    """Three lines that work when pasted."""
    question = (
        "CREATE TABLE tenants (tenant TEXT, building TEXT, rent INTEGER);\n"
        "Question: What is the sum of the rent of tenants whose building is Elm Lodge?\n"
        "Answer with one SQL query only."
    )
    chat = {"model": "sql", "messages": [{"role": "user", "content": question}], "max_tokens": 64, "temperature": 0}
    merge = {"name": "sql-json", "expression": "sql + 0.5*json"}
    header = "-H 'Content-Type: application/json'"
    for line in (
        f"curl {url}/v1/models",
        f"curl {url}/v1/chat/completions {header} -d '{json.dumps(chat)}'",
        f"curl '{url}/admin/v1/merges?wait_s=60' {header} -d '{json.dumps(merge)}'",
    ):
        on_stderr().print(f"\n{line}", soft_wrap=True, markup=False)
