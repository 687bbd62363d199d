"""A sweep on the running server: its table is what evaluations say, and its winner answers as it was measured."""

import math
from typing import Any

import httpx
import openai
import pytest

from amalgam_demo.tasks import generate
from tests.e2e.conftest import RunningServer
from tests.e2e.test_adapter_lifecycle import logprobs
from tests.e2e.test_evaluations import ended

SAME_MEAN = 0.02
"""Nats. Batches of other sizes round otherwise, as they do for any client."""
TASKS = ("sql", "json")
ITEMS = [
    {"task": task, "messages": item.messages, "reference": item.reference}
    for task in TASKS
    for item in generate(task, "dev", 1, seed=1)
]
WEIGHTS = {"sql": [0.375, 0.75, 1.0], "json": [0.625]}


@pytest.fixture
def server(exact_server: RunningServer) -> RunningServer:
    """A sweep's calls share batches, and what its winner answers is asked for alone."""
    return exact_server


def means(report: dict[str, Any], target: int) -> dict[str, float]:
    cells = [cell for cell in report["table"] if cell["target"] == target and cell["metric"] == "log_likelihood"]
    return {cell["task"]: cell["mean"] for cell in cells}


def front(points: dict[int, tuple[float, float]]) -> set[int]:
    """By definition: what no other one is as good as in both, and better than in one."""
    return {
        one
        for one, mine in points.items()
        if not any(all(a >= b for a, b in zip(its, mine, strict=True)) and its != mine for its in points.values())
    }


def test_a_sweep_finds_a_winner_that_answers_as_it_was_measured(admin: httpx.Client, client: openai.OpenAI) -> None:
    tasks = {task: {"adapter": task, "metric": "log_likelihood"} for task in TASKS}
    order = {"tasks": tasks, "items": ITEMS, "search": {"kind": "grid", "weights": WEIGHTS}, "label": "e2e"}
    made = admin.post("/admin/v1/sweeps", json=order)
    assert made.status_code == 202, made.text
    url = f"/admin/v1/sweeps/{made.json()['id']}"
    state = ended(admin, made.json()["id"])
    assert (state["evaluation"]["state"], state["refused"]) == ("done", []), state
    report = admin.get(url).json()
    candidates = report["candidates"]
    tried = {(c["point"]["weight:sql"], c["point"]["weight:json"]) for c in candidates}
    assert tried == {(sql, json) for sql in WEIGHTS["sql"] for json in WEIGHTS["json"]}
    alone = {task: means(report, place)[task] for place, task in enumerate(TASKS)}
    for candidate in candidates:
        its = means(report, candidate["target"])
        expected = {task: math.exp(its[task] - alone[task]) for task in TASKS}
        assert candidate["retention"] == pytest.approx(expected)
        assert candidate["worst"] == min(candidate["retention"].values())
        assert candidate["mean"] == pytest.approx(sum(expected.values()) / len(expected))
    points = {c["target"]: (c["worst"], c["mean"]) for c in candidates}
    assert {c["target"] for c in candidates if c["on_front"]} == front(points)
    assert report["winner"] == candidates[0]["target"] == max(points, key=lambda target: points[target])
    # Weights matter: a smaller share of an adapter leaves less of what it can.
    by_weights = {tuple(c["point"][f"weight:{task}"] for task in TASKS): c["retention"] for c in candidates}
    assert by_weights[1.0, 0.625]["sql"] > by_weights[0.375, 0.625]["sql"]

    promoted = admin.post(f"{url}:promote", params={"wait_s": 60}, json={"name": "swept"})
    assert (promoted.status_code, promoted.json().get("model")) == (201, "swept@1"), promoted.text
    weights = {i["adapter"]: i["weight"] for i in promoted.json()["lineage"]["recipe"]["inputs"]}
    point = candidates[0]["point"]
    assert weights == {f"{task}@1": point[f"weight:{task}"] for task in TASKS}
    again = admin.post(f"{url}:promote", params={"wait_s": 60}, json={"name": "swept"})
    assert (again.status_code, again.json()["model"]) == (200, "swept@1")
    assert logprobs(client, "swept") == pytest.approx(logprobs(client, candidates[0]["model"]), abs=SAME_MEAN)
    body = {"targets": ["swept"], "metrics": ["log_likelihood"], "items": ITEMS}
    measured = ended(admin, admin.post("/admin/v1/evaluations", json=body).json()["id"])
    assert means(measured, 0) == pytest.approx(means(report, report["winner"]), abs=SAME_MEAN)
    answer = client.chat.completions.create(model="swept", messages=ITEMS[0]["messages"], max_tokens=4)  # type: ignore[arg-type]
    assert answer.model == "swept@1"
