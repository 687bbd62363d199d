"""What LoRA costs on CPU: time with adapters over time without, for vLLM's own path and for ours.

Two engines run side by side, one with ``AMALGAM_CPU_LORA=stock`` and one with ``amalgam``, and take turns, with and
without adapters, so that a change of the machine's load meets all four alike. Prompts are random tokens; adapters are
random, of rank 8 on all linear modules. Each engine runs inside its own process, without vLLM's messages between
processes, so what is timed is the model's step. Without ``--dtype`` engines compute in the type that `amalgam serve`
takes on this processor; ``AMALGAM_CPU_UNITS`` forces the products of either kind of processor on the other.

On a machine that does other work too, ``--threads 1 --clock cpu`` counts the processor's time instead of the clock's.

    python loadtests/lora_cpu.py --model FOLDER [--dtype bfloat16] [--repeats 5] [--only decode-16x3 …]
"""

import argparse
import itertools
import json
import os
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
SIDES = ("amalgam", "stock")
ADAPTERS = 16
RANK = 8
REPLY = "@answer "


@dataclass(frozen=True)
class Scenario:
    """One batch: prompts of so many tokens, adapters taken in turn; steps of decoding, or 0 to time the prompts."""

    name: str
    sequences: int
    prompt_tokens: int
    adapters: int
    steps: int
    target: float


SCENARIOS = (
    Scenario("prefill-8x512-3", 8, 512, 3, 0, 1.10),
    Scenario("prefill-4x512-3", 4, 512, 3, 0, 1.10),
    Scenario("prefill-1x512-1", 1, 512, 1, 0, 1.10),
    Scenario("decode-16x3", 16, 32, 3, 16, 1.25),
    Scenario("decode-1x1", 1, 32, 1, 16, 1.25),
    Scenario("decode-16x16", 16, 32, 16, 16, 1.50),
)


class Side:
    """One engine in a process of its own; it measures when asked, and sleeps otherwise."""

    def __init__(self, side: str, arguments: argparse.Namespace, adapters: Path) -> None:
        environment = os.environ | {
            "AMALGAM_CPU_LORA": side,
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "OMP_NUM_THREADS": str(arguments.threads),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--engine", "--adapters", str(adapters)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.versions = self._answer()

    def measure(self, scenario: Scenario, *, with_adapters: bool, seed: int) -> float:
        """Seconds of the prompts, or of the median step of decoding."""
        assert self._process.stdin is not None
        print(json.dumps([scenario.name, with_adapters, seed]), file=self._process.stdin, flush=True)
        return float(self._answer()["seconds"])

    def close(self) -> None:
        """Let the engine end, and wait for it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(REPLY):
                return dict(json.loads(line.removeprefix(REPLY)))
        raise SystemExit(f"the engine ended with {self._process.wait()}")


def serve_engine(arguments: argparse.Namespace) -> None:
    """Be one side: answer each line of standard input with a measurement."""
    import torch
    import vllm
    from vllm.lora.request import LoRARequest

    llm = vllm.LLM(
        arguments.model,
        dtype=arguments.dtype,
        enforce_eager=True,
        enable_lora=True,
        max_loras=ADAPTERS,
        max_lora_rank=RANK,
        max_model_len=1024,
        max_num_seqs=16,
        max_num_batched_tokens=8192,
        enable_prefix_caching=False,
    )
    requests = [LoRARequest(f"a{n}", n + 1, str(arguments.adapters / f"a{n}")) for n in range(ADAPTERS)]
    print(REPLY + json.dumps({"vllm": vllm.__version__, "torch": torch.__version__}), flush=True)
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[arguments.clock]
    for line in sys.stdin:
        name, with_adapters, seed = json.loads(line)
        scenario = next(s for s in SCENARIOS if s.name == name)
        seconds = run_batch(llm, scenario, requests if with_adapters else None, seed, clock)
        print(REPLY + json.dumps({"seconds": seconds}), flush=True)


def run_batch(llm: Any, scenario: Scenario, adapters: list[Any] | None, seed: int, clock: Callable[[], float]) -> float:
    """Send the scenario's batch and time its one prompt step, or the median of its later steps."""
    from vllm import SamplingParams

    engine = llm.llm_engine
    words = random.Random(seed)
    sampling = SamplingParams(temperature=0, max_tokens=scenario.steps + 2 if scenario.steps else 1, ignore_eos=True)
    for n in range(scenario.sequences):
        tokens = [words.randrange(100, 40_000) for _ in range(scenario.prompt_tokens)]
        adapter = adapters[n % scenario.adapters] if adapters else None
        engine.add_request(f"{seed}-{n}", {"prompt_token_ids": tokens}, sampling, lora_request=adapter)
    marks = [clock()]
    while engine.has_unfinished_requests():
        engine.step()
        marks.append(clock())
    if not scenario.steps:
        return marks[-1] - marks[0]
    # The first steps hold prompts, the last may be short.
    steps = [after - before for before, after in itertools.pairwise(marks[2:-1])]
    return statistics.median(steps)


def main() -> None:
    arguments = parse_arguments()
    if arguments.engine:
        serve_engine(arguments)
        return
    scenarios = [s for s in SCENARIOS if not arguments.only or s.name in arguments.only]
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, str(REPOSITORY))
        from tests.adapter_factory import write_lora

        for n in range(ADAPTERS):
            write_lora(Path(folder) / f"a{n}", rank=RANK, seed=n)
        sides = {name: Side(name, arguments, Path(folder)) for name in arguments.sides}
        load_before = os.getloadavg()
        samples = take_turns(sides, scenarios, arguments.repeats)
        versions = next(iter(sides.values())).versions
        for side in sides.values():
            side.close()
    rows = [summarise(s, samples[s.name]) for s in scenarios]
    report = {
        "machine": machine(),
        "versions": versions | {"python": sys.version.split()[0]},
        "date": time.strftime("%Y-%m-%d"),
        "dtype": arguments.dtype,
        "threads": arguments.threads,
        "clock": arguments.clock,
        "repeats": arguments.repeats,
        "load_average_before": [round(x, 2) for x in load_before],
        "command": shlex.join(["python", "loadtests/lora_cpu.py", "--model", "FOLDER", *shown(sys.argv[1:])]),
        "note": arguments.note,
        "rows": rows,
    }
    print(markdown(report))
    if arguments.out:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{arguments.out}.json").write_text(json.dumps(report, indent=2) + "\n")
        (RESULTS / f"{arguments.out}.md").write_text(markdown(report))


def take_turns(sides: dict[str, Side], scenarios: list[Scenario], repeats: int) -> dict[str, dict[str, list[float]]]:
    """{scenario: {"amalgam base": seconds, …}}; the first round warms up and is dropped."""
    samples: dict[str, dict[str, list[float]]] = {s.name: {} for s in scenarios}
    for repeat in range(repeats + 1):
        for scenario in scenarios:
            for with_adapters in (False, True):
                for name, side in sides.items():
                    seed = 1000 * repeat + 10 * scenarios.index(scenario) + with_adapters
                    seconds = side.measure(scenario, with_adapters=with_adapters, seed=seed)
                    if repeat:
                        key = f"{name} {'adapters' if with_adapters else 'base'}"
                        samples[scenario.name].setdefault(key, []).append(seconds)
            print(f"round {repeat} {scenario.name}", file=sys.stderr)
    return samples


def summarise(scenario: Scenario, samples: dict[str, list[float]]) -> dict[str, Any]:
    """Medians and spreads in milliseconds, and the ratios of medians."""
    row: dict[str, Any] = {"scenario": scenario.name, "target": scenario.target}
    for key, seconds in samples.items():
        row[key] = {
            "median_ms": round(statistics.median(seconds) * 1e3, 2),
            "spread_ms": [round(min(seconds) * 1e3, 2), round(max(seconds) * 1e3, 2)],
        }
    for side in (side for side in SIDES if f"{side} base" in samples):
        row[f"{side} ratio"] = round(row[f"{side} adapters"]["median_ms"] / row[f"{side} base"]["median_ms"], 3)
    return row


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    lines = [
        f"# LoRA on CPU, {report['dtype']}, rank {RANK} on all linear modules",
        "",
        f"{report['machine']}; vLLM {report['versions']['vllm']}, torch {report['versions']['torch']}; "
        f"{report['date']}; threads: {report['threads']}; median of {report['repeats']} (least to greatest), "
        f"milliseconds by the {report['clock']} clock; load average before: {report['load_average_before'][0]}.",
        "",
        f"`{report['command']}`",
        *(["", report["note"]] if report["note"] else []),
        "",
        "| scenario | base | amalgam, adapters | stock, adapters | amalgam / base | stock / base | target |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        cells = [cell(row.get(key)) for key in ("amalgam base", "amalgam adapters", "stock adapters")]
        ratios = [f"{row[key]:.2f}" if key in row else "" for key in ("amalgam ratio", "stock ratio", "target")]
        lines.append(f"| {' | '.join([row['scenario'], *cells, *ratios])} |")
    return "\n".join(lines) + "\n"


def cell(value: dict[str, Any] | None) -> str:
    """Median and spread, or nothing where it was not measured."""
    if value is None:
        return ""
    low, high = value["spread_ms"]
    return f"{value['median_ms']:.1f} ({low:.1f}-{high:.1f})"


def machine() -> str:
    """Processor, cores and what they multiply in hardware."""
    import torch

    has = torch.cpu.get_capabilities()
    units = [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if has.get(name)]
    return f"{has.get('cpu_name', 'CPU')}, {os.cpu_count()} cores ({', '.join(units)})"


def served_dtype() -> str:
    """What `amalgam serve` takes for a model of bfloat16."""
    from amalgam.engine.cpu.processor import multiplies_bfloat16
    from amalgam.settings import Settings

    return "bfloat16" if multiplies_bfloat16(Settings().engine.cpu_units) else "float32"


def shown(arguments: list[str]) -> list[str]:
    """The arguments without the folder, which is this machine's."""
    skip = arguments.index("--model")
    return arguments[:skip] + arguments[skip + 2 :]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of SmolLM2-135M")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the engines and their adapters' products")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each engine")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sides", nargs="*", choices=SIDES, default=SIDES)
    parser.add_argument("--only", nargs="*", choices=[s.name for s in SCENARIOS])
    parser.add_argument("--out", default="", help="name of the files under loadtests/results")
    parser.add_argument("--note", default="", help="a line for the report, such as what else ran on the machine")
    parser.add_argument("--engine", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--adapters", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.dtype = arguments.dtype or served_dtype()
    return arguments


if __name__ == "__main__":
    main()
