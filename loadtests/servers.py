"""The two servers that the serving benchmarks compare: Amalgam, and vLLM's own, with the same engine flags."""

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

START_LIMIT_S = 600
PLAIN = "from vllm.entrypoints.launchers.api_server.entry import main; main()"


def engine_environment(**more: str) -> dict[str, str]:
    """What both sides see: threads on every core, a small KV cache, no log lines beside the errors."""
    ours = {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "NO_COLOR": "1",
    }
    return dict(os.environ) | ours | more


class Server:
    """A served process on loopback."""

    def __init__(self, name: str, process: subprocess.Popen[str], url: str) -> None:
        self.name = name
        self.url = url
        self._process = process

    def rss_bytes(self) -> int:
        """Resident memory of the process and of all its descendants, shared pages counted once each (PSS)."""
        total_kb = 0
        for pid in descendants(self._process.pid):
            try:
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue
            total_kb += int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1])  # type: ignore[index]
        return total_kb * 1024

    def front_rss_bytes(self) -> int:
        """The same for the HTTP process alone."""
        text = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text()
        return int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1]) * 1024  # type: ignore[index]

    def post(self, path: str, body: Mapping[str, object], timeout_s: float = 300) -> dict[str, object]:
        """One JSON request."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return dict(json.load(answer))

    def stop(self) -> None:
        """SIGTERM, then wait."""
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()


def descendants(root: int) -> set[int]:
    """``root`` and every process below it."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    family = {root}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    return family


def start_amalgam(store: Path, flags: list[str], *, sources: Path, port: int, **settings: str) -> Server:
    """`amalgam serve` on the demo model; returns when it is ready."""
    environment = engine_environment(AMALGAM_STORE=str(store), AMALGAM_SOURCE_ROOTS=str(sources), **settings)
    command = [sys.executable, "-m", "amalgam", "serve", "--port", str(port), "--", *flags]
    return _start("amalgam", command, environment, port, "/readyz")


def start_front(store: Path, engines: str, *, port: int) -> Server:
    """`amalgam serve --engine` on the demo model; returns when it is ready."""
    command = [sys.executable, "-m", "amalgam", "serve", "--engine", engines, "--port", str(port)]
    return _start("front", command, engine_environment(AMALGAM_STORE=str(store)), port, "/readyz")


def dtype_flags() -> list[str]:
    """The type that `amalgam serve` computes in on this machine, for a server beside it.

    On a CPU it may be float32, where vLLM by itself takes the checkpoint's and is several times slower.
    """
    import torch

    from amalgam.engine.cpu.processor import multiplies_bfloat16
    from amalgam.settings import Settings

    in_float32 = not torch.cuda.is_available() and not multiplies_bfloat16(Settings().engine.cpu_units)
    return ["--dtype", "float32"] if in_float32 else []


def start_plain(
    model: str, flags: list[str], adapters: Mapping[str, Path], *, port: int, lora: bool = True, **environment: str
) -> Server:
    """VLLM's own server with the adapters given at its start, or without LoRA; returns when it is ready.

    Its processes wait for each other in vLLM's way, also where this package is installed beside it.
    """
    modules = [f"{name}={folder}" for name, folder in adapters.items()]
    command = [sys.executable, "-c", PLAIN, "--model", model, "--served-model-name", "smollm2"]
    command += ["--enable-lora"] if lora else []
    command += ["--enforce-eager", "--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log", *flags]
    command += ["--lora-modules", *modules] if modules else []
    return _start("vllm", command, engine_environment(AMALGAM_ENGINE_WAITS="awake", **environment), port, "/health")


def _start(name: str, command: list[str], environment: dict[str, str], port: int, probe: str) -> Server:
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    tail: list[str] = []

    def drain() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            tail.append(line)
            del tail[:-50]

    threading.Thread(target=drain, daemon=True).start()
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url + probe, timeout=5) as answer:
                if answer.status == 200:
                    return Server(name, process, url)
        except OSError:
            time.sleep(0.1)
    process.kill()
    raise SystemExit(f"{name} did not start:\n{''.join(tail)}")
