"""Merging side by side: ours and PEFT's, the same recipe, alternating, medians and peak memory.

    python loadtests/merge_bench.py [--threads 2] [--rounds 5] [--layers 30] [--out loadtests/results/merge_cpu]
    python loadtests/merge_bench.py --device cuda:0 --out loadtests/results/merge_gpu

(a) three rank-8 adapters on SmolLM2's modules: the demo adapters where all three are there, else synthetic ones of the
same shapes. (b) four synthetic rank-16 adapters with Llama-3-8B's 224 module shapes; PEFT's dense SVDs take minutes a
module there, so both sides merge the k_proj and v_proj of one layer (PEFT's dense merges, three runs instead of five,
are then scaled to all modules, which is said), and ours alone all modules. Each run is timed by the clock and by
processor time, which a busy machine disturbs less. The targets are in ``merge_targets``. All of it takes about a
quarter of an hour on two cores; ``--layers 4`` makes the first part short.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from merge_sides import LAYERS, module_shapes, write_synthetic
from merge_targets import EXACT, TIES, as_markdown, targets

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("smollm2", "llama-full", "llama-sample")
DEMO = ("sql", "code", "json")
RECIPE_TIES = {"method": "ties", "parameters": {"density": 0.2}}
DENSE = (EXACT, TIES, "dare_ties on deltas")
"""Jobs in which PEFT decomposes dense matrices."""

DARE = {"method": "dare_ties", "parameters": {"density": 0.5}, "seed": 1}


def jobs(rank: int, count: int) -> dict[str, dict[str, Any]]:
    """Name -> what ours and PEFT are asked; a job without ``peft`` has no counterpart there."""
    weights = [1.0, 0.5, -0.2, 0.7][:count]
    positive = [abs(weight) for weight in weights]
    output = {"output": {"rank": rank}}
    return {
        EXACT: {"weights": weights, "ours": {"method": "svd", **output},
                                    "peft": {"combination_type": "svd", "svd_rank": rank}},
        "exact sum, side by side": {"weights": weights, "ours": {"method": "cat"}, "peft": {"combination_type": "cat"}},
        "linear on factors": {"weights": positive, "ours": {"method": "task_arithmetic", "space": "factor"},
                              "peft": {"combination_type": "linear"}},
        "ties on factors": {"weights": positive, "ours": {**RECIPE_TIES, "space": "factor"},
                            "peft": {"combination_type": "ties", "density": 0.2}},
        "dare_ties on factors": {"weights": positive, "ours": {**DARE, "space": "factor"},
                                 "peft": {"combination_type": "dare_ties", "density": 0.5}},
        TIES: {"weights": [1.0] * count, "ours": {**RECIPE_TIES, "space": "delta", **output},
                           "peft": {"combination_type": "ties_svd", "density": 0.2, "svd_rank": rank}},
        "dare_ties on deltas": {"weights": [1.0] * count, "ours": {**DARE, "space": "delta", **output},
                                "peft": {"combination_type": "dare_ties_svd", "density": 0.5, "svd_rank": rank}},
        "ties in knots": {"weights": weights, "ours": {"method": "ties"}},
        "ties in core": {"weights": weights, "ours": {"method": "ties", "space": "core"}},
        "tsv in core": {"weights": positive, "ours": {"method": "tsv"}},
    }  # fmt: skip


class Side:
    """A running side."""

    def __init__(self, request: dict[str, Any]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "server"), "OMP_NUM_THREADS": str(request["threads"])}
        environment["PYTHONWARNINGS"] = "ignore"
        command = [sys.executable, str(Path(__file__).with_name("merge_sides.py")), json.dumps(request)]
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.loaded = self._read()["ready"]

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a side ended with status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """One merge."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def compare(
    title: str,
    asked: dict[str, Any],
    ours: dict[str, Any],
    peft: dict[str, Any] | None,
    rounds: int,
    peft_rounds: int = 0,
) -> dict[str, Any]:
    """One job: alternating rounds after one warm round of ours, which maps files on its first; peaks are of the first.

    Args:
        title: The job's name. asked: What both are asked.
        ours: The request of our side. peft: Of PEFT's; None for ours alone.
        rounds: Runs of each side. peft_rounds: Where above 0, PEFT's alone.
    """
    row: dict[str, Any] = {"job": title}
    sides = {"ours": (ours, Side(ours))}
    if peft is not None and "peft" in asked:
        sides["peft"] = (peft, Side(peft))
    warm = sides["ours"][1].run(asked)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name in list(sides) if turn % 2 else list(sides)[::-1]:
            if name == "ours" or turn < (peft_rounds or rounds):
                runs[name].append(sides[name][1].run(asked))
    for name, (_, side) in sides.items():
        side.close()
        for clock in ("seconds", "cpu_seconds"):
            row[f"{name}_{clock}"] = statistics.median(run[clock] for run in runs[name])
            row[f"{name}_{clock}_runs"] = [run[clock] for run in runs[name]]
        first = warm if name == "ours" else runs[name][0]
        row[f"{name}_peak_bytes"] = max(0, first["peak"] - side.loaded)
    if "peft" in sides:
        row["ratio"] = row["peft_seconds"] / row["ours_seconds"]
        row["cpu_ratio"] = row["peft_cpu_seconds"] / row["ours_cpu_seconds"]
    print(json.dumps({k: v for k, v in row.items() if not k.endswith("_runs")}), flush=True)
    return row


def on_smollm2(work: Path, threads: int, rounds: int, layers: int) -> dict[str, Any]:
    """(a)."""
    folders = [ROOT / "adapters_store" / "demo" / name for name in DEMO]
    kind = "the three demo adapters"
    if layers < LAYERS["smollm2"] or not all((folder / "adapter_model.safetensors").is_file() for folder in folders):
        kind = "three synthetic adapters of the demo adapters' shapes"
        folders = [work / name for name in DEMO]
        for seed, folder in enumerate(folders):
            write_synthetic(folder, module_shapes("smollm2", layers), 8, seed)
    request = {"folders": [str(f) for f in folders], "threads": threads, "model": "smollm2", "layers": layers}
    ours, peft = {**request, "side": "ours"}, {**request, "side": "peft"}
    rows = [compare(title, job, ours, peft, rounds) for title, job in jobs(8, 3).items()]
    short = "SmolLM2" if layers == LAYERS["smollm2"] else f"SmolLM2, {layers} layers"
    title = f"{kind}, rank 8, SmolLM2-135M, {layers} of its 30 layers, {7 * layers} modules"
    return {"name": "smollm2", "short": short, "title": title, "rows": rows}


def on_llama_sample(work: Path, threads: int, rounds: int) -> dict[str, Any]:
    """(b), both sides on two modules."""
    only = ("k_proj", "v_proj")
    folders = [work / f"sample{i}" for i in range(4)]
    for seed, folder in enumerate(folders):
        write_synthetic(folder, module_shapes("llama-3-8b", 1, only), 16, seed)
    request = {
        "folders": [str(f) for f in folders], "threads": threads, "model": "llama-3-8b", "layers": 1, "only": only,
    }  # fmt: skip
    ours, peft = {**request, "side": "ours"}, {**request, "side": "peft"}
    rows = [
        compare(title, job, ours, peft, rounds, peft_rounds=min(rounds, 3) if title in DENSE else 0)
        for title, job in jobs(16, 4).items() if "peft" in job
    ]  # fmt: skip
    whole = _decomposition(module_shapes("llama-3-8b", LAYERS["llama-3-8b"]))
    scale = whole / _decomposition(module_shapes("llama-3-8b", 1, only))
    for row in rows:
        if row["job"] in DENSE:
            row["peft_scaled_seconds"] = row["peft_seconds"] * scale
    title = "four synthetic adapters, rank 16, Llama-3-8B's k_proj and v_proj of one layer"
    short = "two modules of Llama-3-8B"
    return {"name": "llama-sample", "short": short, "scale": scale, "title": title, "rows": rows}


def _decomposition(shapes: dict[str, tuple[int, int]]) -> float:
    """What dense singular value decompositions of all modules cost, up to a factor."""
    return float(sum(m * n * min(m, n) for m, n in shapes.values()))


def on_llama_full(work: Path, threads: int, rounds: int) -> dict[str, Any]:
    """(b), ours on all modules."""
    folders = [work / f"full{i}" for i in range(4)]
    for seed, folder in enumerate(folders):
        write_synthetic(folder, module_shapes("llama-3-8b", LAYERS["llama-3-8b"]), 16, seed)
    held = sum((folder / "adapter_model.safetensors").stat().st_size for folder in folders)
    ours = {"folders": [str(f) for f in folders], "threads": threads, "side": "ours"}
    chosen = {title: job for title, job in jobs(16, 4).items() if " on " not in title}
    rows = [compare(title, job, ours, None, rounds) for title, job in chosen.items()]
    return {
        "name": "llama-full",
        "short": "Llama-3-8B's 224 modules",
        "input_bytes": held,
        "title": f"four synthetic adapters, rank 16, Llama-3-8B's 224 modules ({held / 1e6:.0f} MB), ours alone",
        "rows": rows,
    }


def about(threads: int, device: str) -> dict[str, Any]:
    """Machine, versions, date: without them a row says nothing."""
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.processor())  # fmt: skip
    found = {name: importlib.metadata.version(name) for name in ("torch", "peft", "numpy", "safetensors")}
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(), "cpu": model, "cores": os.cpu_count(),
        "threads": threads, "device": device, "python": platform.python_version(), "versions": found,
        "commit": commit.stdout.strip(), "load_average_at_start": os.getloadavg()[0],
    }  # fmt: skip


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=LAYERS["smollm2"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--out", type=Path, default=ROOT / "loadtests" / "results" / "merge_cpu")
    options = parser.parse_args()
    if options.device != "cpu":
        from merge_bench_gpu import measure, on_gpu_markdown

        result = {"about": about(options.threads, options.device), **measure(options.device, options.rounds)}
        options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(on_gpu_markdown(result))
        return
    with tempfile.TemporaryDirectory() as folder:
        facts = about(options.threads, "cpu")
        work, parts = Path(folder), []
        if "smollm2" in options.parts:
            parts.append(on_smollm2(work, options.threads, options.rounds, options.layers))
        if "llama-full" in options.parts:
            parts.append(on_llama_full(work, options.threads, options.rounds))
        if "llama-sample" in options.parts:
            parts.append(on_llama_sample(work, options.threads, options.rounds))
    notes = [
        "PEFT's factor-space results differ from the merged delta by about its own size; ours reproduce them there.",
    ]
    result = {"about": facts, "rounds": options.rounds, "targets": targets(parts), "parts": parts, "notes": notes}
    options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(as_markdown(result))
    for row in result["targets"]:
        print(f"{'met' if row['met'] else 'MISSED':6} {row['target']} ({row['on']}): {row['measured']}")


if __name__ == "__main__":
    main()
