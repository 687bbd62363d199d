"""What fits are worth on a server: the demo adapters merged at their defaults, by `iteris`, and with searched weights.

Fits by 10 unlabelled prompts an input and by 10 items an input, of the split `dev`; every merge is then asked
held-out questions of the split `test`, and its answers are run and compared. Counts do not depend on how busy the
machine is, minutes do.

    python loadtests/fit_quality.py --resume FILE [--items 40] [--out fit_quality]   # goes on where it stopped
"""

import argparse
import asyncio
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "server")]

import httpx  # noqa: E402

from amalgam_demo.scoring import server_answers  # noqa: E402
from amalgam_demo.task_item import TaskItem  # noqa: E402
from loadtests.report import RESULTS, machine, versions  # noqa: E402
from loadtests.servers import Server, start_amalgam  # noqa: E402
from loadtests.skill_families import family_items, is_right  # noqa: E402

TASKS = ("sql", "code", "json")
METRICS = {"json": "json_equal"}
PLAIN = ("sql + code + json", "linear(sql, code, json)", "ties(sql, code, json)")
PROMPTS = 10
"""Of an input."""
FLAGS = ["--max-model-len", "1024"]
PORT = 18473
AT_ONCE = 8


def fits(seeds: int) -> dict[str, dict[str, Any]]:
    """Name -> the `fit` of a merge."""
    items = {task: family_items(task, "dev", PROMPTS) for task in TASKS}
    prompts = {task: [item.prompt for item in rows] for task, rows in items.items()}
    scored = {
        task: [{"messages": item.messages, "reference": item.reference} for item in rows]
        for task, rows in items.items()
    }
    found: dict[str, dict[str, Any]] = {
        "iteris-kept": {"method": "iteris", "prompts": prompts},
        "iteris-items": {"method": "iteris", "by": "items", "items": scored},
    }
    for seed in range(seeds):
        found[f"kept-{seed}"] = {"method": "weights", "prompts": prompts, "seed": seed}
        found[f"items-{seed}"] = {
            "method": "weights", "by": "items", "items": scored, "metrics": METRICS, "seed": seed,
        }  # fmt: skip
    return found


async def fitted(client: httpx.AsyncClient, name: str, fit: Mapping[str, Any], budget_s: float) -> dict[str, Any]:
    """A merge whose weights the server finds; how long it took until it answered."""
    began = time.monotonic()
    body = {"name": name, "inputs": list(TASKS), "fit": {**fit, "budget_s": budget_s}}
    made = await client.post("/admin/v1/merges", json=body)
    if made.status_code != 202:
        raise SystemExit(f"{name}: {made.text}")
    job = made.json()["job"]
    while job["state"] not in ("published", "failed", "cancelled"):
        await asyncio.sleep(1)
        job = (await client.get(f"/admin/v1/jobs/{job['id']}")).json()
    if job["state"] != "published":
        raise SystemExit(f"{name}: {job}")
    took_s = time.monotonic() - began
    version = (await client.get(f"/admin/v1/adapters/{name}/versions/1")).json()
    kept = {ref: row["answers"] for ref, row in ((version["lineage"] or {}).get("kept") or {})["inputs"].items()}
    found = {
        "name": name, "fit": job["fit"], "seconds": round(took_s, 1), "probe": kept, "timings": job["timings"],
        "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip
    if job["fit"]["method"] == "iteris":
        return found
    sweep = (await client.get(f"/admin/v1/sweeps/{job['fit']['sweep']}")).json()
    return found | {
        "calls": sweep["evaluation"]["done"], "given_up": sum(one["worst"] is None for one in sweep["candidates"]),
        "points": [{"point": one["point"], "retention": one["retention"]} for one in sweep["candidates"]],
    }  # fmt: skip


async def scored(client: httpx.AsyncClient, model: str, items: int, tasks: Sequence[str]) -> dict[str, int]:
    """Right answers to held-out questions, by task."""
    asked: list[TaskItem] = [item for task in tasks for item in family_items(task, "test", items)]
    answers = await server_answers(client, model, asked, lambda: None, AT_ONCE)
    right = dict.fromkeys(tasks, 0)
    for item, answer in zip(asked, answers, strict=True):
        right[item.task] += is_right(item, answer)
    return right


async def run(server: Server, file: Path, arguments: argparse.Namespace) -> None:
    """All that the file does not know yet."""
    async with httpx.AsyncClient(base_url=server.url, timeout=900) as client:
        for name, fit in fits(arguments.seeds).items():
            # What was fitted in an earlier run is not on this server.
            is_here = fit["method"] == "weights" or name in known(file, "score")
            if name not in known(file, "fit") or not is_here:
                note(file, {"kind": "fit", **await fitted(client, name, fit, arguments.budget_s)})
        models = [*((task, (task,)) for task in TASKS), *((model, TASKS) for model in PLAIN)]
        for name, row in known(file, "fit").items():
            models.append((expression(row), TASKS))
            print(name, row["fit"]["weights"], flush=True)
        for model, tasks in models:
            if model not in known(file, "score"):
                right = await scored(client, model, arguments.items, tasks)
                note(file, {"kind": "score", "name": model, "right": right, "items": arguments.items})


def expression(row: Mapping[str, Any]) -> str:
    """What the merge of a fit is called by."""
    if row["fit"]["method"] == "iteris":
        return str(row["name"])
    return " + ".join(f"{weight}*{ref}" for ref, weight in row["fit"]["weights"].items())


def known(file: Path, kind: str) -> dict[str, dict[str, Any]]:
    """Rows so far, by name."""
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return {row["name"]: row for row in rows if row["kind"] == kind}


def note(file: Path, row: Mapping[str, Any]) -> None:
    """Keep a row at once."""
    with file.open("a") as out:
        out.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(json.dumps({key: value for key, value in row.items() if key != "points"}), flush=True)


def page(report: Mapping[str, Any]) -> str:
    """The table."""
    scores, own = report["scores"], {task: report["scores"][task]["right"][task] for task in TASKS}
    count = next(iter(scores.values()))["items"]
    lines = [
        "# Fitted weights", "",
        f"{report['machine']}; {', '.join(f'{name} {value}' for name, value in report['versions'].items())}; "
        f"{report['date']}.", f"Right answers of {count} held-out questions a task; 48 candidates a fit at most.",
        "", f"`{report['command']}`", "",
        "| merge | " + " | ".join(TASKS) + " | worst of own | seconds | candidates, given up | calls |",
        "|---|" + "---|" * (len(TASKS) + 4),
        "| each adapter alone | " + " | ".join(str(own[task]) for task in TASKS) + " | | | | |",
    ]  # fmt: skip
    fit_of = {expression(row): row for row in report["fits"].values()}
    for model, row in scores.items():
        if model in TASKS:
            continue
        worst = min(row["right"][task] / own[task] for task in TASKS)
        fit = fit_of.get(model)
        name, told = f"`{model}`", "| | |"
        if fit is not None and fit["fit"]["method"] == "iteris":
            name, told = f"fit `iteris` by {fit['fit']['by']}", f"{fit['seconds']:.0f} | | |"
        elif fit is not None:
            name = f"fit `weights` by {fit['fit']['by']}, seed {fit['fit']['seed']}: `{model}`"
            told = f"{fit['seconds']:.0f} | {fit['fit']['tried']}, {fit['given_up']} | {fit['calls']} |"
        lines.append(
            f"| {name} | " + " | ".join(str(row["right"][task]) for task in TASKS) + f" | {worst:.0%} | {told}"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resume", type=Path, required=True, help="file that keeps what was measured")
    parser.add_argument("--items", type=int, default=40, help="held-out questions a task")
    parser.add_argument("--seeds", type=int, default=1, help="fits of each kind")
    parser.add_argument("--budget-s", type=float, default=300, help="longest search, seconds")
    parser.add_argument("--so-far", action="store_true", help="ask nothing, write what the file knows")
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    if not arguments.so_far:
        with tempfile.TemporaryDirectory() as folder:
            server = start_amalgam(Path(folder) / "store", FLAGS, sources=REPOSITORY, port=PORT)
            try:
                asyncio.run(run(server, arguments.resume, arguments))
            finally:
                server.stop()
    command = "python loadtests/fit_quality.py " + shlex.join(sys.argv[1:]).replace(str(arguments.resume), "FILE")
    report = {
        "machine": machine(), "versions": versions(), "date": time.strftime("%Y-%m-%d"), "command": command,
        "fits": known(arguments.resume, "fit"), "scores": known(arguments.resume, "score"),
    }  # fmt: skip
    print(page(report))
    if arguments.out:
        (RESULTS / f"{arguments.out}.json").write_text(json.dumps(report, ensure_ascii=False) + "\n")
        (RESULTS / f"{arguments.out}.md").write_text(page(report))


if __name__ == "__main__":
    main()
