"""The same weights twice: as an adapter added while the server runs, and as a checkpoint they are merged into."""

import json
import statistics
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from amalgam.demo.base_model import ensure_base_model
from amalgam.settings import Settings
from loadtests.bench_client import Figures, Load, run_load
from loadtests.servers import Server, dtype_flags, start_plain

PORT = 18472
ROUNDS = 5
NAME = "best-merge"
FIGURES = {"itl_p50_ms": "time a token, ms", "ttft_p50_ms": "first token, ms", "output_tokens_per_s": "tokens/s"}


def measure_latency(server: Server, folder: Path, row: Mapping[str, Any], flags: Sequence[str]) -> dict[str, Any]:
    """Register the row's merge, export it, serve the export beside, and ask both in turn.

    Args:
        server: Amalgam, exporting below ``folder/exports``.
        folder: of the run.
        row: a scored merge.
        flags: of the engine.
    """
    name = _registered(server, row["model"])
    _post(server, "/admin/v1/exports?wait_s=300", {"name": NAME, "expression": name, "dtype": "float32"})
    plain_flags = [*_without_lora(flags), *dtype_flags()]
    checkpoint = start_plain(str(folder / "exports" / NAME), plain_flags, {}, port=PORT, lora=False)
    tokenizer = str(ensure_base_model(Settings().storage.cache_dir, lambda text: None))
    loads = {"1 stream": Load(6, 1, 64, 48, (name,), 0), "8 streams": Load(24, 8, 64, 48, (name,), 0)}
    seen: dict[str, dict[str, list[Figures]]] = {load: {"adapter": [], "checkpoint": []} for load in loads}
    try:
        for number in range(ROUNDS + 1):
            for label, load in loads.items():
                for side in ("adapter", "checkpoint") if number % 2 else ("checkpoint", "adapter"):
                    figures = _asked(server if side == "adapter" else checkpoint, tokenizer, load, name, side)
                    if number:
                        seen[label][side].append(figures)
    finally:
        checkpoint.stop()
    rows = [
        {"load": load, "figure": said}
        | {side: statistics.median(getattr(one, figure) for one in its) for side, its in sides.items()}
        for load, sides in seen.items()
        for figure, said in FIGURES.items()
    ]
    return {"model": row["model"], "rounds": ROUNDS, "rows": rows}


def _asked(server: Server, tokenizer: str, load: Load, name: str, side: str) -> Figures:
    models = (name,) if side == "adapter" else ("smollm2",)
    figures = run_load(server.url, tokenizer, replace(load, models=models))
    if figures.failed:
        raise SystemExit(f"{side} failed {figures.failed} requests")
    return figures


def _registered(server: Server, model: str) -> str:
    """The name of the merge: ``model`` itself where it is one, else that of a version made from it."""
    if "(" not in model and " " not in model:
        return model
    _post(server, "/admin/v1/merges?wait_s=120", {"name": NAME, "expression": model})
    return NAME


def _post(server: Server, path: str, body: Mapping[str, object]) -> None:
    data = json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=400) as answer:
        answer.read()


def _without_lora(flags: Sequence[str]) -> list[str]:
    pairs = zip(flags[::2], flags[1::2], strict=True)
    return [part for flag, value in pairs if "lora" not in flag for part in (flag, value)]
