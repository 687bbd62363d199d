"""Merges on the running server: by expression, exact, hot-registered, refused where they cannot be right."""

import time
from typing import Any

import httpx
import openai
import pytest

from amalgam.domain.job import FINAL_STATES
from amalgam_demo.tasks import generate
from tests.adapter_factory import write_lora
from tests.e2e.test_adapter_lifecycle import logprobs, push

WAIT = {"wait_s": 60}


def merge(admin: httpx.Client, name: str, expression: str, **more: Any) -> httpx.Response:
    return admin.post("/admin/v1/merges", params=WAIT, json={"name": name, "expression": expression} | more)


def test_a_merge_is_built_registered_and_called(admin: httpx.Client, client: openai.OpenAI) -> None:
    made = merge(admin, "sql-json", "sql + 0.5*json")
    assert made.status_code == 201, made.text
    version = made.json()
    assert version["model"] == "sql-json@1"
    assert version["rank"] == 16
    assert version["source"] == "merge"
    assert [entry["adapter"] for entry in version["lineage"]["recipe"]["inputs"]] == ["json@1", "sql@1"]
    assert len({tuple(logprobs(client, model)) for model in ("sql-json", "sql", "json", "smollm2")}) == 4
    again = merge(admin, "sql-json", "sql@1 + 0.5*json@1")
    assert (again.status_code, again.json()["model"]) == (200, "sql-json@1")
    assert again.json()["digest"] == version["digest"]


def test_a_merge_of_one_is_that_one(admin: httpx.Client, client: openai.OpenAI) -> None:
    assert merge(admin, "only-sql", "sql").status_code == 201
    assert logprobs(client, "only-sql") == pytest.approx(logprobs(client, "sql"), abs=0.05)


def test_what_cancels_out_is_the_base_model(admin: httpx.Client, client: openai.OpenAI) -> None:
    merged = merge(admin, "half", "0.5*sql")
    assert merged.status_code == 201
    back = merge(admin, "nothing-left", "0.001*sql + 0.999*sql@1 - half - half")
    # The same version twice in one recipe is refused with a reason; the sum is written once instead.
    assert back.json()["error"]["code"] == "duplicate_input"
    back = merge(admin, "nothing-left", "sql - 2*half")
    assert back.status_code in (201, 422), back.text
    if back.status_code == 201:
        assert logprobs(client, "nothing-left") == pytest.approx(logprobs(client, "smollm2"), abs=0.1)


@pytest.mark.parametrize(
    ("expression", "status", "code"),
    [
        ("sql + ", 400, "invalid_expression"),
        ("sql + nosuch", 404, "adapter_not_found"),
        ("sql + smollm2", 404, "adapter_not_found"),
        ("nosuch(sql, json)", 400, "unknown_method"),
        ("linear(sql, -1*json)", 400, "zero_weight_sum"),
    ],
)
def test_what_cannot_be_merged_is_refused_before_it_is_queued(
    admin: httpx.Client, expression: str, status: int, code: str
) -> None:
    jobs = len(admin.get("/admin/v1/jobs").json()["data"])
    answer = merge(admin, "wrong", expression)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert len(admin.get("/admin/v1/jobs").json()["data"]) == jobs
    assert admin.get("/admin/v1/adapters/wrong").status_code == 404


def test_without_waiting_a_job_is_answered_and_can_be_followed(admin: httpx.Client) -> None:
    answer = admin.post(
        "/admin/v1/merges", json={"name": "later", "expression": "json + 0.25*code", "set_default": False}
    )
    assert answer.status_code == 202
    job = answer.json()["job"]
    assert answer.headers["location"] == f"/admin/v1/jobs/{job['id']}"
    made = merge(admin, "later", "json + 0.25*code", set_default=False)
    assert made.status_code in (200, 201)
    shown = admin.get(f"/admin/v1/jobs/{job['id']}").json()
    assert shown["state"] == "published"
    assert shown["version"] == "later@1"
    assert {"queue", "read", "merge", "write", "register", "probe"} <= set(shown["timings_s"])
    with admin.stream("GET", f"/admin/v1/jobs/{job['id']}/events") as events:
        told = events.read().decode()
    assert told.count("event: state") == 1
    assert '"state":"published"' in told
    assert admin.get("/admin/v1/adapters/later").json()["default_version"] is None


def test_a_rank_that_does_not_fit_is_recompressed(admin: httpx.Client, client: openai.OpenAI, tmp_path: Any) -> None:
    for index in range(2):
        assert push(admin, f"wide-{index}", write_lora(tmp_path / str(index), rank=24, seed=index)).status_code == 201
    made = merge(admin, "wide", "wide-0 + wide-1")
    assert made.status_code == 201, made.text
    assert made.json()["rank"] == 32
    assert 0 < made.json()["lineage"]["result"]["energy_kept"] < 1
    assert logprobs(client, "wide")


def test_a_plan_builds_nothing(admin: httpx.Client) -> None:
    plan = admin.post("/admin/v1/merges:plan", json={"name": "planned", "expression": "sql + json + code"}).json()
    assert plan["rank"] == 24
    assert plan["modules"] == 210
    forecast = plan["forecast"]
    assert (forecast["is_complete"], len(forecast["modules"])) == (True, 210)
    assert forecast["overall"]["inputs"] == ["code@1", "json@1", "sql@1"]
    assert admin.get("/admin/v1/adapters/planned").status_code == 404


def test_what_a_merge_keeps_is_measured_before_it_is_published(admin: httpx.Client) -> None:
    prompts = {task: [item.prompt for item in generate(task, "dev", 3, seed=1)] for task in ("sql", "json")}
    probe = {"prompts": prompts, "max_tokens": 32}
    alone = merge(admin, "same-sql", "sql - 0.001*json", probe={"prompts": {"sql": prompts["sql"]}, "max_tokens": 32})
    assert alone.status_code == 201, alone.text
    kept = alone.json()["lineage"]["kept"]
    assert kept["failure"] is None
    own = kept["inputs"]["sql@1"]
    # What it reads in one batch it wrote in another: a token or two may come out otherwise, an answer too.
    assert (own["prompts"], own["agreement"]) == (3, pytest.approx(1, abs=0.05))
    assert own["likelihood"] == pytest.approx(1, abs=0.05)
    lost = merge(admin, "lost-json", "sql + 0.05*json", probe=probe)
    assert lost.status_code == 201, lost.text
    assert lost.json()["lineage"]["kept"]["failure"] is None
    kept = lost.json()["lineage"]["kept"]["inputs"]
    assert kept["json@1"]["alike"] < kept["sql@1"]["alike"]
    assert [text.startswith("skill_lost") and "json@1" in text for text in lost.json()["warnings"]] == [True]
    refused = merge(admin, "never-json", "sql + 0.05*json", probe=probe, require={"kept": 0.95})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "kept_too_low")
    assert admin.get("/admin/v1/adapters/never-json").status_code == 404
    plan = admin.post(
        "/admin/v1/merges:plan", params={"diagnostics": "false"},
        json={"name": "planned", "expression": "sql + 0.05*json", "probe": probe},
    ).json()  # fmt: skip
    assert plan["kept"]["failure"] is None
    assert plan["kept"]["inputs"]["json@1"]["agreement"] == pytest.approx(kept["json@1"]["agreement"], abs=0.15)


def test_a_merge_asked_for_again_under_its_key_is_answered_again(admin: httpx.Client) -> None:
    body = {"name": "keyed", "expression": "sql + 0.125*code"}
    answers = [
        admin.post("/admin/v1/merges", params=WAIT, json=body, headers={"Idempotency-Key": "e2e"}) for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].content == answers[1].content
    assert answers[1].headers["idempotency-replayed"] == "true"


def test_a_version_can_be_built_again(admin: httpx.Client) -> None:
    made = merge(admin, "again", "ties(sql, json, code; density=0.5)")
    assert made.status_code == 201, made.text
    rebuilt = admin.post("/admin/v1/adapters/again/versions/1:rebuild").json()
    assert rebuilt["identical"], rebuilt
    assert rebuilt["rebuilt_digest"] == made.json()["digest"]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_merge_is_fitted_to_what_its_inputs_read_and_built_again(admin: httpx.Client) -> None:
    tasks = ("sql", "code", "json")
    prompts = {task: [item.prompt for item in generate(task, "dev", 3, seed=1)] for task in tasks}
    body = {"name": "fitted", "inputs": tasks, "fit": {"prompts": prompts, "max_tokens": 40, "budget_s": 900}}
    job = admin.post("/admin/v1/merges", json=body).json()["job"]
    until = time.monotonic() + 900
    while job["state"] not in FINAL_STATES and time.monotonic() < until:
        time.sleep(1)
        job = admin.get(f"/admin/v1/jobs/{job['id']}").json()
    assert job["state"] == "published", job
    lineage = admin.get("/admin/v1/adapters/fitted/versions/1").json()["lineage"]
    fit = lineage["fit"]
    assert (fit["method"], fit["by"], fit["sweep"], fit["unread"]) == ("iteris", "kept", None, 0)
    assert fit["tokens"] > 400
    plain = merge(admin, "unfitted", "sql + code + json", probe={"prompts": prompts, "max_tokens": 48})
    kept, lost = (
        [one["likelihood"] for one in answer["kept"]["inputs"].values()]
        for answer in (lineage, plain.json()["lineage"])
    )
    assert min(kept) > 0.95
    assert min(kept) > min(lost)
    again = admin.post("/admin/v1/merges", params=WAIT, json=body)
    assert (again.status_code, again.json()["model"]) == (200, "fitted@1")
    rebuilt = admin.post("/admin/v1/adapters/fitted/versions/1:rebuild", timeout=620).json()
    assert rebuilt["identical"], rebuilt
