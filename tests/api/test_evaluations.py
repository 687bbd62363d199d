"""Evaluations over HTTP: an engine that answers by rule, the real application, its registry and its runner."""

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse

from amalgam.domain.clock import utc_now
from amalgam.domain.error_report import ErrorReport
from amalgam.domain.evaluation import EvaluationDraft
from amalgam.domain.messages import BlendOrder, Refusal
from amalgam.errors.engine import EngineNotReady, EngineRefused
from amalgam.registry.database import Database
from amalgam.registry.evaluations import EvaluationRegistry
from amalgam.services.blender_link import BlenderLink
from tests.api.fake_engine import FakeEngine
from tests.support.running_app import ADMIN_KEY, API_KEY, RunningApp, assert_error, push, start_app, write_adapter


class Parrot(FakeEngine):
    """Says the last word of the question; versions say it twice. Tokens are letters, and versions know them better."""

    running = most = aborted = 0
    hangs = False

    async def call(self, endpoint: Any, body: dict[str, Any], raw_request: Any, profile: Any = None) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        gone = asyncio.create_task(raw_request.receive())
        try:
            canned = await super().call(endpoint, body, raw_request)
            if self.hangs:
                # As vLLM does: what is asked for ends with its client and not otherwise.
                await gone
                self.aborted += 1
            return JSONResponse(self.say(endpoint, body)) if canned is not None else None
        finally:
            gone.cancel()
            self.running -= 1

    def say(self, endpoint: str, body: dict[str, Any]) -> dict[str, Any]:
        times = 1 if body["model"] == "tiny" else 2
        if endpoint == "tokenize":
            text = body["prompt"] if "prompt" in body else "<" + body["messages"][-1]["content"] + ">"
            return {"tokens": [ord(letter) % 31 for letter in text]}
        if endpoint == "completions" and "prompt_logprobs" in body:
            told = [None, *({str(token): {"logprob": -1.0 / times - token / 100}} for token in body["prompt"][1:])]
            return {"choices": [{"text": "x", "prompt_logprobs": told}]}
        if endpoint == "completions":
            return {"choices": [{"text": " ".join([body["prompt"].split()[-1]] * times)}]}
        word = body["messages"][-1]["content"].split()[-1]
        if word == "refuse":
            raise EngineRefused(400, "no", "messages")
        return {"choices": [{"message": {"content": " ".join([word] * times)}}]}


CHAT = {"messages": [{"role": "user", "content": "say yes"}]}
ITEMS = [
    CHAT | {"reference": "yes", "pattern": r"^yes( yes)*$"},
    {"prompt": "say 1", "reference": "1", "task": "numbers"},
    {"messages": [{"role": "user", "content": "refuse"}], "reference": "?"},
]


@pytest.fixture(scope="module")
async def prepared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[RunningApp, httpx.AsyncClient]]:
    folder = tmp_path_factory.mktemp("evaluations")
    async with start_app(folder, Parrot()) as running_app, running_app.http(ADMIN_KEY) as http:
        for seed, name in enumerate(("sql", "json")):
            assert (await push(http, name, write_adapter(folder / name, seed=seed))).status_code == 201
        yield running_app, http


async def submit(http: httpx.AsyncClient, **body: Any) -> str:
    fields: dict[str, Any] = {"targets": ["tiny", "sql"], "metrics": ["exact_match"], "items": ITEMS}
    answer = await http.post("/admin/v1/evaluations", json=fields | body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def ended(http: httpx.AsyncClient, evaluation_id: str) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while True:
            report = (await http.get(f"/admin/v1/evaluations/{evaluation_id}")).json()
            if report["evaluation"]["state"] not in ("queued", "running"):
                return dict(report)
            await asyncio.sleep(0.02)


def means(report: dict[str, Any]) -> dict[tuple[str, str, str], tuple[float, int]]:
    return {(c["model"], c["task"], c["metric"]): (c["mean"], c["count"]) for c in report["table"]}


async def test_every_metric_of_an_evaluation(prepared: tuple[RunningApp, httpx.AsyncClient]) -> None:
    running_app, http = prepared
    asked = len(running_app.engine.calls)
    metrics = ["exact_match", "contains", "regex", "json_valid", "json_equal", "log_likelihood"]
    report = await ended(http, await submit(http, metrics=metrics, label="nightly"))
    evaluation = report["evaluation"]
    assert (evaluation["state"], evaluation["done"], evaluation["total"]) == ("done", 6, 6)
    assert evaluation["tasks"] == {"all": 2, "numbers": 1}
    assert [target["pinned"] for target in evaluation["targets"]] == ["tiny", "sql@1"]
    found = means(report)
    assert found["tiny", "all", "exact_match"] == (1.0, 1)
    assert found["sql", "all", "exact_match"] == (0.0, 1)
    assert found["sql", "all", "contains"] == found["sql", "all", "regex"] == (1.0, 1)
    assert found["tiny", "numbers", "json_equal"] == (1.0, 1)
    assert found["sql", "numbers", "json_equal"] == found["sql", "numbers", "json_valid"] == (0.0, 1)
    assert ("tiny", "all", "json_equal") not in found
    # The tokens of "yes" and of nothing else: their letters modulo 31 are 28, 8 and 22.
    assert list(found["tiny", "all", "log_likelihood"]) == pytest.approx([-1.0 - (28 + 8 + 22) / 300, 1])
    assert list(found["sql", "all", "log_likelihood"]) == pytest.approx([-0.5 - (28 + 8 + 22) / 300, 1])
    assert report["refused"] == [{"target": t, "code": "invalid_request", "count": 1} for t in (0, 1)]
    weighed = [body for endpoint, body in running_app.engine.calls[asked:] if "prompt_logprobs" in body]
    assert all((body["max_tokens"], body["prompt_logprobs"]) == (1, 0) for body in weighed)
    chats = [body for endpoint, body in running_app.engine.calls[asked:] if endpoint == "chat_completions"]
    assert all((body["temperature"], body["max_tokens"]) == (0, 128) for body in chats)
    await running_app.services.live_jobs.look()
    page = (await http.get("/metrics")).text
    assert 'amalgam_evaluation_calls_total{kind="evaluation",outcome="measured"} 4' in page
    assert 'amalgam_evaluation_calls_total{kind="evaluation",outcome="refused"} 2' in page
    assert 'amalgam_jobs_finished_total{kind="evaluation",state="done"} 1' in page
    assert 'amalgam_job_step_seconds_count{kind="evaluation",step="measure"} 1' in page
    assert 'amalgam_jobs{kind="evaluation",state="running"} 0' in page


async def test_results_page_by_page_and_exports(prepared: tuple[RunningApp, httpx.AsyncClient]) -> None:
    _, http = prepared
    evaluation_id = await submit(http, metrics=["exact_match", "contains"])
    await ended(http, evaluation_id)
    url = f"/admin/v1/evaluations/{evaluation_id}"
    rows: list[dict[str, Any]] = []
    cursor = None
    while cursor is not None or not rows:
        given = {"limit": 4} | ({"cursor": cursor} if cursor else {})
        page = (await http.get(f"{url}/results", params=given)).json()
        rows, cursor = rows + page["data"], page["next_cursor"]
    assert [(row["target"], row["item"]) for row in rows] == [(t, i) for t in range(2) for i in range(3)]
    assert (rows[3]["served"], rows[3]["answer"], rows[3]["values"]["contains"]) == ("sql@1", "yes yes", 1.0)
    assert (rows[5]["served"], rows[5]["answer"], rows[5]["error_code"]) == ("sql@1", None, "invalid_request")
    exported = (await http.get(f"{url}/export")).json()
    assert exported["results"] == rows
    assert exported["items"][1] == {"task": "numbers", "prompt": "say 1", "reference": "1"}
    assert len(exported["table"]) == 8
    table = await http.get(f"{url}/export", params={"format": "csv"})
    assert table.headers["content-disposition"].endswith(f'{evaluation_id}.csv"')
    read = list(csv.DictReader(io.StringIO(table.text)))
    assert [row["answer"] for row in read] == [row["answer"] or "" for row in rows]
    assert (read[0]["exact_match"], read[3]["exact_match"], read[5]["exact_match"]) == ("1.0", "0.0", "")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
async def test_a_spreadsheet_runs_nothing_of_what_was_asked_or_answered(
    prepared: tuple[RunningApp, httpx.AsyncClient], start: str
) -> None:
    _, http = prepared
    formula = f'{start}HYPERLINK("http://x","y")'
    item = {"prompt": f"say {formula}", "reference": formula}
    metrics = ["exact_match", "log_likelihood"]
    evaluation_id = await submit(http, targets=["tiny"], metrics=metrics, items=[item])
    await ended(http, evaluation_id)
    url = f"/admin/v1/evaluations/{evaluation_id}/export"
    [row] = csv.DictReader(io.StringIO((await http.get(url, params={"format": "csv"})).text, newline=""))
    assert row["reference"] == f"'{formula}"
    assert row["answer"] == (formula.strip() if start.isspace() else f"'{formula}")
    # A number stays one.
    assert float(row["log_likelihood"]) < 0
    told = (await http.get(url)).json()
    assert told["items"][0]["reference"] == formula


async def test_a_key_sent_again_with_other_items_is_refused(prepared: tuple[RunningApp, httpx.AsyncClient]) -> None:
    """F17: the same key and body queue nothing new, another body is refused."""
    _, http = prepared
    body = {"targets": ["tiny"], "metrics": ["exact_match"], "items": ITEMS, "label": "keyed"}
    headers = {"Idempotency-Key": "evaluation"}
    first = await http.post("/admin/v1/evaluations", json=body, headers=headers)
    again = await http.post("/admin/v1/evaluations", json=body, headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    assert (again.content, again.headers["idempotency-replayed"]) == (first.content, "true")
    for other in ({"items": ITEMS[:1]}, {"label": "other"}):
        refused = await http.post("/admin/v1/evaluations", json=body | other, headers=headers)
        assert_error(refused, 422, "idempotency_key_reused")
    queued = (await http.get("/admin/v1/evaluations")).json()["data"]
    assert [one["id"] for one in queued if one["label"] in ("keyed", "other")] == [first.json()["id"]]
    await ended(http, first.json()["id"])


async def test_targets_compare_within_and_between_evaluations(prepared: tuple[RunningApp, httpx.AsyncClient]) -> None:
    _, http = prepared
    first, second = await submit(http), await submit(http, targets=["sql"])
    other = await submit(http, targets=["sql"], max_tokens=7)
    for made in (first, second, other):
        await ended(http, made)
    url = f"/admin/v1/evaluations/{first}/compare"
    rows = (await http.get(url, params={"baseline": "sql@1", "candidate": "0"})).json()["data"]
    assert [(r["task"], r["wins"], r["losses"], r["difference"], r["p_value"]) for r in rows] == [
        ("all", 1, 0, 1.0, 1.0),
        ("numbers", 1, 0, 1.0, 1.0),
    ]
    between = (await http.get(url, params={"baseline": "sql", "candidate": "sql", "other": second})).json()["data"]
    assert [row["difference"] for row in between] == [0.0, 0.0]
    differ = await http.get(url, params={"baseline": "sql", "candidate": "sql", "other": other})
    assert_error(differ, 409, "evaluations_differ")
    unknown = await http.get(url, params={"baseline": "9", "candidate": "sql"})
    assert_error(unknown, 404, "target_not_evaluated")


async def test_a_weighted_alias_is_drawn_from_by_item(prepared: tuple[RunningApp, httpx.AsyncClient]) -> None:
    running_app, http = prepared
    targets = [{"model": "sql", "weight": 1}, {"model": "json", "weight": 1}]
    assert (await http.put("/admin/v1/aliases/ab", json={"targets": targets})).status_code == 201
    assert (await http.put("/admin/v1/aliases/one", json={"targets": targets[:1]})).status_code == 201
    items = [CHAT | {"reference": str(number)} for number in range(24)]
    report = await ended(http, await submit(http, targets=["ab", "one"], items=items))
    pinned = [(target["pinned"], target["meaning"]) for target in report["evaluation"]["targets"]]
    assert pinned[0] == ("ab", running_app.services.catalog.snapshot.aliases["ab"].meaning)
    assert pinned[1] == ("sql@1", "sql@1")
    rows = (await http.get(f"/admin/v1/evaluations/{report['evaluation']['id']}/results?target=0")).json()["data"]
    assert {row["served"] for row in rows} == {"sql@1", "json@1"}


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"targets": ["nosuch"]}, 404, "model_not_found", "model"),
        ({"targets": ["sql + nosuch"]}, 404, "model_not_found", "model"),
        ({"metrics": ["regex"], "items": [CHAT]}, 400, "metric_not_applicable", "metrics"),
        ({"metrics": ["json_equal"], "items": [CHAT | {"reference": "no"}]}, 400, "metric_not_applicable", "metrics"),
        ({"items": [CHAT | {"pattern": "(a"}]}, 400, "invalid_pattern", "items"),
        ({"items": [{"reference": "a"}]}, 400, "invalid_value", "items.0"),
        ({"items": [CHAT, CHAT | {"prompt": "a"}]}, 400, "invalid_value", "items.1"),
        ({"items": [{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}]}, 400, None, "items.0"),
        ({"items": []}, 400, "invalid_value", "items"),
        ({"metrics": ["bleu"]}, 400, "invalid_value", None),
        ({"items": [CHAT | {"reference": "a"}] * 2000, "targets": ["tiny"] * 11}, 400, "evaluation_too_large", "items"),
    ],
)
async def test_what_is_refused_before_anything_is_queued(
    prepared: tuple[RunningApp, httpx.AsyncClient],
    change: dict[str, Any],
    status: int,
    code: str | None,
    param: str | None,
) -> None:
    _, http = prepared
    body = {"targets": ["tiny"], "metrics": ["exact_match"], "items": ITEMS} | change
    answer = await http.post("/admin/v1/evaluations", json=body)
    error = assert_error(answer, status, code or answer.json()["error"]["code"])
    assert param is None or error["param"] == param
    assert_error(await http.get("/admin/v1/evaluations/eval-x"), 404, "evaluation_not_found")


async def test_it_takes_few_places_and_yields_to_clients(tmp_path: Path) -> None:
    engine = Parrot()
    async with (
        start_app(tmp_path, engine, evaluation_patience_s=60) as running_app,
        running_app.http(ADMIN_KEY) as http,
    ):
        engine.chunk_pause_s = 2.0
        async with running_app.http(API_KEY) as client:
            served = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT | {"model": "tiny"}))
            while engine.running == 0:
                await asyncio.sleep(0.005)
            evaluation_id = await submit(http, targets=["tiny"], items=[CHAT | {"reference": str(n)} for n in range(6)])
            await asyncio.sleep(0.1)
            assert len(engine.calls) == 1
            assert (await served).status_code == 200
        engine.chunk_pause_s = 0.01
        assert (await ended(http, evaluation_id))["evaluation"]["state"] == "done"
        assert len(engine.calls) == 7
        assert engine.most == running_app.settings.evaluations.evaluation_concurrency == 2


async def test_a_server_that_is_never_idle_lets_one_in_now_and_then(tmp_path: Path) -> None:
    async with (
        start_app(tmp_path, Parrot(), evaluation_patience_s=0.05) as running_app,
        running_app.http(ADMIN_KEY) as http,
    ):
        running_app.services.metrics.begin("chat_completions", None)  # type: ignore[arg-type]
        assert (await ended(http, await submit(http, targets=["tiny"])))["evaluation"]["state"] == "done"


async def test_cancelling_stops_what_the_engine_is_at(tmp_path: Path) -> None:
    engine = Parrot()
    async with start_app(tmp_path, engine) as running_app, running_app.http(ADMIN_KEY) as http:
        engine.hangs = True
        evaluation_id = await submit(http, targets=["tiny"], items=[CHAT | {"reference": str(n)} for n in range(9)])
        async with asyncio.timeout(10):
            while engine.running < 2:
                await asyncio.sleep(0.01)
        url = f"/admin/v1/evaluations/{evaluation_id}"
        assert_error(await http.delete(url), 409, "evaluation_state_conflict")
        assert (await http.post(f"{url}:cancel")).json()["state"] == "cancelled"
        async with asyncio.timeout(0.5):
            while engine.running:
                await asyncio.sleep(0.01)
        assert engine.aborted == len(engine.calls) == 2
        assert_error(await http.post(f"{url}:resume"), 409, "evaluation_state_conflict")
        engine.hangs = False
        # The next one does not wait for what was cancelled.
        assert (await ended(http, await submit(http, targets=["tiny"])))["evaluation"]["state"] == "done"
        assert (await http.delete(url)).json() == {"deleted": evaluation_id}
        assert_error(await http.get(url), 404, "evaluation_not_found")


async def test_after_a_restart_only_the_rest_is_asked(tmp_path: Path) -> None:
    engine = Parrot()
    async with start_app(tmp_path, engine) as running_app, running_app.http(ADMIN_KEY) as http:
        engine.chunk_pause_s = 0.03
        items = [CHAT | {"reference": str(number)} for number in range(40)]
        evaluation_id = await submit(http, targets=["tiny"], items=items)
        while len(engine.calls) < 8:
            await asyncio.sleep(0.01)
    second = Parrot()
    async with start_app(tmp_path, second) as running_app, running_app.http(ADMIN_KEY) as http:
        ended_now = (await ended(http, evaluation_id))["evaluation"]
        assert (ended_now["state"], ended_now["done"]) == ("done", 40)
        assert 0 < len(second.calls) <= 40 - 6


async def test_what_killed_servers_left_is_measured_to_its_end(tmp_path: Path) -> None:
    async with start_app(tmp_path, Parrot()) as running_app, running_app.http(ADMIN_KEY) as http:
        await submit(http, targets=["tiny"], items=[CHAT | {"reference": "yes"}])
        url = running_app.settings.storage.registry_url
    async with Database.open(url) as database:
        rows = EvaluationRegistry(database, utc_now, lambda: "eval-killed")
        [kept] = (await rows.list(None, limit=5)).items
        items = await rows.items(kept.id)
        await rows.create(EvaluationDraft("evaluation", "", kept.targets, items, kept.metrics, 8))
        claimed = await rows.claim("dead", lease_s=0.0)
        assert claimed is not None
        await rows.save(claimed.id, "dead", [], lease_s=0.0)
    async with start_app(tmp_path, Parrot()) as running_app, running_app.http(ADMIN_KEY) as http:
        for evaluation_id in (kept.id, "eval-killed"):
            assert (await ended(http, evaluation_id))["evaluation"]["state"] == "done"


async def test_an_engine_that_restarts_is_waited_for(tmp_path: Path) -> None:
    class Restarting(Parrot):
        left = 1

        def say(self, endpoint: str, body: dict[str, Any]) -> dict[str, Any]:
            if self.left:
                self.left -= 1
                raise EngineNotReady("restarting")
            return super().say(endpoint, body)

    async with start_app(tmp_path, Restarting()) as running_app, running_app.http(ADMIN_KEY) as http:
        report = await ended(http, await submit(http, targets=["tiny"], items=ITEMS[:1]))
        assert means(report) == {("tiny", "all", "exact_match"): (1.0, 1)}
        assert running_app.engine.calls[0][1]["model"] == "tiny"


async def test_a_blend_that_cannot_be_built_is_not_built_for_every_item(
    prepared: tuple[RunningApp, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, http = prepared
    orders = []

    async def refuse(_: BlenderLink, order: BlendOrder, client: str) -> Refusal:
        orders.append(order.id)
        return Refusal(id=order.id, error=ErrorReport(code="merge_undefined", status=422, message="no"))

    monkeypatch.setattr(BlenderLink, "build", refuse)
    items = [CHAT | {"reference": str(number)} for number in range(300)]
    report = await ended(http, await submit(http, targets=["sql + 3*json", "tiny"], items=items))
    assert report["refused"] == [{"target": 0, "code": "merge_undefined", "count": 300}]
    assert [(cell["model"], cell["count"]) for cell in report["table"]] == [("tiny", 300)]
    assert len(orders) <= 2


async def test_the_list_knows_kinds_and_pages(prepared: tuple[RunningApp, httpx.AsyncClient]) -> None:
    _, http = prepared
    made = [await submit(http, targets=["tiny"]) for _ in range(3)]
    for evaluation_id in made:
        await ended(http, evaluation_id)
    first = (await http.get("/admin/v1/evaluations", params={"limit": 2})).json()
    assert [row["id"] for row in first["data"]] == made[:0:-1]
    second = (await http.get("/admin/v1/evaluations", params={"limit": 1, "cursor": first["next_cursor"]})).json()
    assert second["data"][0]["id"] == made[0]
    assert "items" not in json.dumps(second["data"][0].keys().__repr__().replace("items_digest", ""))
    assert (await http.get("/admin/v1/evaluations", params={"kind": "sweep"})).json()["data"] == []
