"""How good merged adapters are: three demo adapters, every merge method, answers that are run and compared.

A server with the demo model answers 200 questions a task: the base model, each adapter alone, merges that the server
fits to ten prompts of each adapter, and every method's merge, as one would first try it and as the best of a sweep
found it on the development split. Sweeps go through the server's own API and measure the log-likelihood of
references; what counts in the end is right answers on the held-out split (sql: what the query returns; code: what the
function returns; json: the value), by the metrics of `amalgam demo score`.

    python loadtests/quality.py --resume FILE [--out quality]           # two hours on 2 cores; goes on where it stopped
    python loadtests/quality.py --resume FILE --latency --out quality   # and the best one: adapter against checkpoint
    python loadtests/quality.py --resume FILE --so-far --out quality    # asks nothing more, writes what is known

Numbers are counts, so a busy machine makes them late, not wrong; the latency of `--latency` wants a quiet one.
"""

import argparse
import asyncio
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "server")]

from amalgam.merge.methods import METHODS, Space  # noqa: E402
from amalgam_demo.scoring import server_answers  # noqa: E402
from amalgam_demo.tasks import generate, score  # noqa: E402
from loadtests.quality_contenders import ADAPTERS, SEED, Contender, Search, first_tries, fits, searches, singles  # noqa: E402
from loadtests.quality_latency import measure_latency  # noqa: E402
from loadtests.quality_page import best, quality_page  # noqa: E402
from loadtests.report import RESULTS, machine, versions  # noqa: E402
from loadtests.servers import Server, start_amalgam  # noqa: E402

PORT = 18471
BASE = "smollm2"
RANK = 64
FLAGS = ["--max-model-len", "512", "--max-num-seqs", "64", "--max-loras", "4", "--max-lora-rank", str(RANK)]
# Short blocks, so that what the prompts of a task have in common is computed once an adapter.
FLAGS += ["--max-cpu-loras", "16", "--block-size", "32"]
AT_ONCE = 64

Rows = dict[str, Any]
"""What is known so far: ``scores`` and ``sweeps``, as they are written to the resume file."""


_KEPT = frozenset({"scores", "sweeps", "latency"})


class Book:
    """The rows, written down after each one."""

    def __init__(self, file: Path) -> None:
        self._file = file
        known = json.loads(file.read_text()) if file.exists() else {}
        # A report may be gone on from; its machine, date and command are those of then.
        self.rows: Rows = {"scores": [], "sweeps": []} | {key: known[key] for key in _KEPT & known.keys()}

    def add(self, kind: str, row: Mapping[str, Any]) -> None:
        """Write one down."""
        self.rows[kind].append(dict(row))
        self._file.write_text(json.dumps(self.rows, indent=1, ensure_ascii=False) + "\n")
        print(json.dumps(row, ensure_ascii=False), file=sys.stderr)

    def has(self, kind: str, **fields: Any) -> bool:
        """Whether a row with these fields is there."""
        return any(all(row[name] == value for name, value in fields.items()) for row in self.rows[kind])


async def merged(client: httpx.AsyncClient, contender: Contender) -> None:
    """Build what the contender is made of."""
    if contender.fit is not None:
        await fitted(client, contender.model, contender.fit)
    for name, recipe in contender.recipes.items():
        said = {"expression": recipe} if isinstance(recipe, str) else {"recipe": recipe}
        body = {"name": name, "set_default": True, **said}
        reply = await client.post("/admin/v1/merges", params={"wait_s": 120}, json=body)
        if reply.status_code not in (200, 201):
            raise SystemExit(f"{name}: {reply.text}")


async def fitted(client: httpx.AsyncClient, name: str, fit: Mapping[str, Any]) -> None:
    """Have the server fit the sum of the adapters, and wait until it is in service."""
    reply = await client.post("/admin/v1/merges", json={"name": name, "inputs": ADAPTERS, "fit": dict(fit)})
    if reply.status_code == 200:
        return
    while reply.is_success:
        job = reply.json().get("job", reply.json())
        if job["state"] == "published":
            return
        if job["state"] in ("failed", "cancelled"):
            break
        await asyncio.sleep(1)
        reply = await client.get(f"/admin/v1/jobs/{job['id']}")
    raise SystemExit(f"{name}: {reply.text}")


async def scored(client: httpx.AsyncClient, contender: Contender, items: int) -> dict[str, Any]:
    """Right answers by task, on held-out items."""
    await merged(client, contender)
    asked = [item for task in ADAPTERS for item in generate(task, "test", items, SEED)]
    began = time.monotonic()
    answers = await server_answers(client, contender.model, asked, lambda: None, AT_ONCE)
    took_s = time.monotonic() - began
    right = dict.fromkeys(ADAPTERS, 0)
    for item, answer in zip(asked, answers, strict=True):
        right[item.task] += score(item.task, item, answer)
    return {
        "method": contender.method, "setting": contender.setting, "model": contender.model, "items": items,
        "right": right, "seconds": round(took_s, 1),
    }  # fmt: skip


async def swept(client: httpx.AsyncClient, search: Search, items: int) -> dict[str, Any]:
    """The best candidate of a sweep on the development split, and how the likelihoods of its references compare."""
    body = {
        "label": search.label,
        "tasks": {task: {"adapter": task, "metric": "log_likelihood"} for task in ADAPTERS},
        "items": [
            {"task": task, "messages": item.messages, "reference": item.reference}
            for task in ADAPTERS
            for item in generate(task, "dev", items, SEED)
        ],
        "search": dict(search.body),
    }
    reply = await client.post("/admin/v1/sweeps", json=body)
    if reply.status_code not in (200, 201, 202):
        raise SystemExit(f"{search.label}: {reply.text}")
    sweep_id = reply.json()["id"]
    began = time.monotonic()
    while True:
        report = (await client.get(f"/admin/v1/sweeps/{sweep_id}")).json()
        if report["evaluation"]["state"] in ("done", "failed", "cancelled", "interrupted"):
            break
        await asyncio.sleep(1)
    if report["winner"] is None:
        raise SystemExit(f"{search.label}: {report['evaluation']}")
    best = next(one for one in report["candidates"] if one["target"] == report["winner"])
    return {
        "search": search.label, "candidates": len(report["candidates"]), "items": items,
        "seconds": round(time.monotonic() - began, 1), "best": best["model"], "point": best["point"],
        "retention": best["retention"], "worst": best["worst"],
    }  # fmt: skip


async def run(server: Server, book: Book, arguments: argparse.Namespace) -> None:
    """All that is not in the book yet."""
    async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:
        for contender in (*singles(BASE), *fits(), *first_tries()):
            if not book.has("scores", model=contender.model):
                book.add("scores", await scored(client, contender, arguments.items))
        for search in searches(arguments.trials):
            if not book.has("sweeps", search=search.label):
                book.add("sweeps", await swept(client, search, arguments.dev_items))
        for sweep in book.rows["sweeps"]:
            contender = Contender(sweep["point"]["method"], f"best of the sweep “{sweep['search']}”", sweep["best"])
            if not book.has("scores", model=contender.model):
                book.add("scores", await scored(client, contender, arguments.items))


async def prepared(server: Server, model: str) -> None:
    """Build what ``model`` is made of, where this server has not, because an earlier one scored it."""
    async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:
        for contender in (*fits(), *first_tries()):
            if contender.model == model:
                await merged(client, contender)


def started(folder: Path) -> Server:
    """A server that takes every method in a `model` field, and as many new blends as a search wants."""
    return start_amalgam(
        folder / "store", FLAGS, sources=REPOSITORY, port=PORT,
        AMALGAM_BLEND_METHODS=",".join(METHODS), AMALGAM_BLEND_SPACES=",".join(Space), AMALGAM_BLENDS_PER_MINUTE="6000",
        AMALGAM_BLEND_TIMEOUT_S="120", AMALGAM_ENGINE_HANG_S="900", AMALGAM_EVALUATION_CONCURRENCY=str(AT_ONCE),
        AMALGAM_EXPORT_ROOT=str(folder / "exports"),
    )  # fmt: skip


def measure(book: Book, arguments: argparse.Namespace) -> None:
    """Start a server, ask, and stop it."""
    with tempfile.TemporaryDirectory() as folder:
        server = started(Path(folder))
        try:
            asyncio.run(run(server, book, arguments))
            if arguments.latency:
                asyncio.run(prepared(server, best(book.rows)["model"]))
                book.rows["latency"] = measure_latency(server, Path(folder), best(book.rows), FLAGS)
        finally:
            server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resume", type=Path, required=True, help="file that keeps what was measured")
    parser.add_argument("--items", type=int, default=200, help="held-out questions a task")
    parser.add_argument("--dev-items", type=int, default=16, help="development questions a task in a sweep")
    parser.add_argument("--trials", type=int, default=12, help="candidates of a sweep")
    parser.add_argument("--so-far", action="store_true", help="ask nothing, write what the file knows")
    parser.add_argument("--latency", action="store_true", help="measure the best merge as adapter and as checkpoint")
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    book = Book(arguments.resume)
    if not arguments.so_far:
        measure(book, arguments)
    command = "python loadtests/quality.py " + shlex.join(sys.argv[1:])
    report: dict[str, Any] = {
        "machine": machine(),
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
        "command": command,
    }
    report |= {"seed": SEED, **book.rows}
    page = quality_page(report)
    print(page)
    if arguments.out:
        (RESULTS / f"{arguments.out}.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        (RESULTS / f"{arguments.out}.md").write_text(page)


if __name__ == "__main__":
    main()
