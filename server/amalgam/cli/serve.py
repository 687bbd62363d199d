"""`amalgam serve`: the server with an embedded engine, on the demo model or on any other."""

import json
import os
import signal
import socket
import sys
import threading
import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from amalgam.engine.cpu_lora_preload import EXTENSION
from amalgam.errors import AmalgamError
from amalgam.settings import Settings

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette

    from amalgam.engine.fork_server import ForkServer

DEMO_NAME = "smollm2"
_CONSOLE = Console(stderr=True, highlight=False)


def serve(
    model: Annotated[
        str | None, typer.Argument(help="folder or hub id of the base model; without it: the demo model")
    ] = None,
    vllm_flags: Annotated[list[str] | None, typer.Argument(help="after --: any flag of vLLM's server")] = None,
    store: Annotated[Path | None, typer.Option(help="folder of adapters and registry")] = None,
    served_model_name: Annotated[str | None, typer.Option(help="name of the base model in requests")] = None,
    host: Annotated[str | None, typer.Option(help="address to listen on")] = None,
    port: Annotated[int | None, typer.Option(help="port to listen on; 0 picks one")] = None,
) -> None:
    """Serve the base model and its adapters."""
    given: dict[str, Any] = {"store": store, "host": host, "port": port}
    settings = Settings(**{key: value for key, value in given.items() if value is not None})
    flags = list(vllm_flags or [])
    if model is not None and model.startswith("-"):
        # typer hands over what stands behind `--` as arguments in order, the model's place included.
        flags, model = [model, *flags], None
    try:
        run(settings, model, served_model_name, flags)
    except AmalgamError as error:
        _CONSOLE.print(f"[red]{error.message}[/red]")
        raise typer.Exit(1) from None


def run(settings: Settings, model: str | None, served_model_name: str | None, flags: list[str]) -> None:
    """Everything between the command line and uvicorn."""
    from amalgam.api.auth import require_safe_binding
    from amalgam.engine.environment import prepare_environment
    from amalgam.engine.fork_server import ForkServer, foresee
    from amalgam.store.hub import local_model
    from amalgam.telemetry.logs import VLLM_JSON_CONFIG

    require_safe_binding(settings)
    is_demo = model is None
    default_name = DEMO_NAME if model is None else Path(model).name.lower()
    began = time.monotonic()
    prepare_environment(VLLM_JSON_CONFIG if settings.log_format == "json" else None)
    # As early as can be: what it imports beside us is most of what the engine's start would take.
    foreseen = foresee(os.environ) if settings.engine_start == "forked" else None
    fork_server = None if foreseen is None else ForkServer(foreseen)
    if fork_server is not None:
        fork_server.start()
    if model is None:
        from amalgam.demo.base_model import ensure_base_model

        with _CONSOLE.status("Preparing the demo model") as status:
            model = str(ensure_base_model(settings.cache_dir, lambda text: status.update(text)))
    else:
        model = str(local_model(model))
    name = served_model_name or default_name
    args = vllm_arguments(settings, model, name, flags, is_demo=is_demo)
    listener = _listen(settings)
    _serve(settings, args, listener, began, fork_server, is_demo=is_demo)


def cpu_multiplies_bfloat16() -> bool:
    """Whether this processor has units for bfloat16 products; without them float32 is several times faster."""
    import torch

    has = torch.cpu.get_capabilities()
    return any(has.get(unit) for unit in ("avx512_bf16", "amx_bf16", "bf16"))


def lora_places(settings: Settings, *, on_cpu: bool) -> tuple[int, int]:
    """Slots of a batch, and adapters in memory: as set, else as many as are cheap.

    With our LoRA on a CPU a slot takes memory for the adapter in it, and an adapter in memory is a mapping of its file.
    Elsewhere either is a copy in the type that vLLM computes in, and a slot's is padded to the largest rank.
    """
    is_roomy = on_cpu and settings.cpu_lora == "amalgam"
    slots = settings.max_loras or (16 if is_roomy else 4)
    return slots, settings.max_cpu_loras or max(slots, 256 if is_roomy else 64)


def vllm_arguments(settings: Settings, model: str, name: str, flags: list[str], *, is_demo: bool) -> Namespace:
    """VLLM's own parser over our defaults; what the user gives after ``--`` wins, because it comes last."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.platforms import current_platform
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    ours = ["--model", model, "--served-model-name", name, "--enable-lora"]
    slots, kept = lora_places(settings, on_cpu=current_platform.is_cpu())
    ours += ["--max-loras", str(slots), "--max-cpu-loras", str(kept)]
    ours += ["--max-lora-rank", str(settings.max_lora_rank)]
    # One backend, by name: where vLLM chooses by request, what the first cannot honour is dropped or becomes a 500.
    ours += ["--structured-outputs-config.backend", "xgrammar"]
    if current_platform.is_cpu():
        ours += ["--enforce-eager"]
        if not cpu_multiplies_bfloat16():
            ours += ["--dtype", "float32"]
        if settings.cpu_lora == "amalgam":
            ours += ["--worker-extension-cls", EXTENSION]
    if is_demo:
        ours += ["--max-model-len", str(settings.max_model_len), "--max-num-seqs", "64"]
        ours += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    args: Namespace = make_arg_parser(FlexibleArgumentParser()).parse_args([*ours, *flags])
    validate_parsed_serve_args(args)
    return args


def _listen(settings: Settings) -> socket.socket:
    """Bind before the engine starts, so that a taken port is known at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        from amalgam.errors.requests import PortTaken

        raise PortTaken(settings.port, error.strerror or "cannot bind") from None
    return listener


def _serve(
    settings: Settings,
    args: Namespace,
    listener: socket.socket,
    began: float,
    fork_server: "ForkServer | None",
    *,
    is_demo: bool,
) -> None:
    from amalgam.app import create_app
    from amalgam.demo.adapters import demo_adapter_folders
    from amalgam.telemetry.logs import configure_logging

    configure_logging(settings.log_format)
    port = listener.getsockname()[1]
    url = f"http://{settings.host if ':' not in settings.host else f'[{settings.host}]'}:{port}"
    phases = _Phases(sys.stderr.isatty())

    def ready(startup_s: dict[str, float]) -> None:
        phases.end()
        parts = {"command line": serving - began} | startup_s
        split = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in parts.items())
        took_s = time.monotonic() - began
        _CONSOLE.print(f"[green]Ready[/green] in {took_s:.1f} s ({split}): {url}", soft_wrap=True)
        if is_demo:
            _print_examples(url)

    folders = demo_adapter_folders() if is_demo and settings.register_demo else {}
    app = create_app(
        settings, args, on_phase=phases.show, on_ready=ready, demo_folders=folders, fork_server=fork_server
    )
    server = _http_server(app, settings.drain_timeout_s)
    # What came before is mostly vLLM's import, which its command line needs.
    serving = time.monotonic()
    # Having stopped in good order, uvicorn raises the signal again; with its default handler that would be a death.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run(sockets=[listener])


def _http_server(app: "Starlette", drain_timeout_s: float) -> "uvicorn.Server":
    import uvicorn

    from amalgam.cli.http_protocol import bounded_http

    config = uvicorn.Config(
        app,
        http=bounded_http(),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=int(drain_timeout_s) + 1,
        h11_max_incomplete_event_size=64 * 1024,
        server_header=False,
    )

    class _Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # A stream of events ends with its job, which may be long after everything else is drained.
            if hasattr(app.state, "amalgam"):
                app.state.amalgam.merges.feed.close()
            await super().shutdown(sockets)

    return _Server(config)


class _Phases:
    """What the start is doing: a moving line on a terminal, plain lines elsewhere."""

    def __init__(self, is_terminal: bool) -> None:
        self._status: Any = _CONSOLE.status("Starting") if is_terminal else None
        self._lock = threading.Lock()
        if self._status is not None:
            self._status.start()

    def show(self, phase: str) -> None:
        """Say ``phase``."""
        with self._lock:
            if self._status is not None:
                self._status.update(f"{phase} …")
            else:
                _CONSOLE.print(f"{phase} …")

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
        _CONSOLE.print(f"\n{line}", soft_wrap=True, markup=False)
