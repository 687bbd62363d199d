"""Expressions in the `model` field, on every endpoint: with the real blend process, and without one."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from amalgam.domain.expression import parse_expression
from amalgam.domain.messages import BlendBuilt, BlendOrder
from amalgam.errors.settings import SettingRefused
from amalgam.services.blender_link import BlenderLink
from amalgam.store.safetensors_header import read_header
from tests.api.fake_engine import FakeEngine
from tests.support.running_app import ADMIN_KEY, API_KEY, RunningApp, assert_error, push, start_app, write_adapter

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
DTYPES = {"F32": "float32", "F16": "float16"}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": CHAT | {"max_tokens": 3},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [1]},
}


async def fill(running_app: RunningApp, names: tuple[str, ...] = ("sql", "json", "code")) -> None:
    async with running_app.http(ADMIN_KEY) as admin:
        for seed, name in enumerate(names):
            made = await push(admin, name, write_adapter(running_app.sources / name, seed=seed))
            assert made.status_code == 201, made.text


@pytest.fixture(scope="module")
async def blending(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningApp]:
    async with start_app(tmp_path_factory.mktemp("blending"), blender=True, blends_per_minute=10_000) as running_app:
        await fill(running_app)
        yield running_app


@pytest.fixture
async def http(blending: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    async with blending.http(API_KEY) as session:
        yield session


async def ask(http: httpx.AsyncClient, model: str, path: str = "/v1/chat/completions", **more: Any) -> httpx.Response:
    return await http.post(path, json=BODIES[path] | {"model": model} | more)


class Instant:
    """In the place of the blend process: copies an input, when it is let."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.orders: list[BlendOrder] = []
        self.gate = asyncio.Event()
        self.gate.set()
        monkeypatch.setattr(BlenderLink, "build", self._build)

    async def _build(self, order: BlendOrder, client: str = "") -> BlendBuilt:
        self.orders.append(order)
        await self.gate.wait()
        folder = Path(order.folder)
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(b"x" * 4096)
        return BlendBuilt(id=order.id, size_bytes=4096, rank=4, seconds={"merge": 0.0})


# --- what answers


async def test_a_blend_is_built_once_and_answers_under_its_name(blending: RunningApp, http: httpx.AsyncClient) -> None:
    loaded = len(blending.engine.loaded)
    first, *others = await asyncio.gather(*(ask(http, "sql + 0.5*json") for _ in range(5)))
    assert first.status_code == 200, first.text
    name = first.json()["model"]
    assert name.startswith("blend@")
    assert first.headers["x-amalgam-adapter"] == name
    assert first.headers["x-amalgam-recipe"] == "0.5*json@1 + sql@1"
    for spelling in ("0.50*json@1+sql", "task_arithmetic(sql, 0.5*json)", " sql  +  .5*json ", name):
        others.append(await ask(http, spelling))
    assert {answer.json()["model"] for answer in others} == {name}
    assert blending.engine.loaded[loaded:] == [name]


@pytest.mark.parametrize("path", BODIES)
async def test_every_endpoint_takes_one(http: httpx.AsyncClient, path: str) -> None:
    answer = await ask(http, "sql - 0.25*code", path)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == answer.headers["x-amalgam-adapter"]
    assert answer.headers["x-amalgam-recipe"] == "-0.25*code@1 + sql@1"


async def test_a_stream_of_one_holds_it_to_the_end(blending: RunningApp, http: httpx.AsyncClient) -> None:
    answer = await ask(http, "ties(sql, 0.8*json; density=0.3)", stream=True)
    assert answer.headers["x-amalgam-recipe"] == "ties(0.8*json@1, sql@1; density=0.3)"
    pieces = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    assert {piece["model"] for piece in pieces} == {answer.headers["x-amalgam-adapter"]}
    assert blending.engine.residency.held == 0
    assert blending.services.inference.running == 0


@pytest.mark.parametrize("model", ["1.0*sql", "linear(2*sql)", "1*sql@1"])
async def test_an_adapter_alone_is_that_version(http: httpx.AsyncClient, model: str) -> None:
    answer = await ask(http, model)
    assert answer.json()["model"] == "sql@1"
    assert "x-amalgam-recipe" not in answer.headers


async def test_the_page_of_a_model_describes_a_blend_and_builds_none(
    blending: RunningApp, http: httpx.AsyncClient
) -> None:
    loaded = list(blending.engine.loaded)
    card = (await http.get("/v1/models/" + quote("json + 0.125*sql"))).json()
    assert card["id"] == "json + 0.125*sql"
    assert card["root"].startswith("blend@")
    assert (card["parent"], card["recipe"]) == ("tiny", "json@1 + 0.125*sql@1")
    assert blending.engine.loaded == loaded
    assert_error(await http.get(f"/v1/models/{card['root']}"), 404, "model_not_found")
    made = (await ask(http, "json + 0.125*sql")).json()["model"]
    assert made == card["root"]
    by_name = (await http.get(f"/v1/models/{made}")).json()
    assert (by_name["root"], by_name["recipe"]) == (made, card["recipe"])


async def test_a_merge_of_the_same_recipe_has_the_same_digest(blending: RunningApp, http: httpx.AsyncClient) -> None:
    for expression in ("sql + 0.75*json", "linear(code, 3*sql)", "dare_linear(sql, json; space=knots, seed=0)"):
        answer = await ask(http, expression)
        assert answer.status_code == 200, answer.text
        for spelled in (expression, answer.headers["x-amalgam-recipe"]):
            plan = await blending.services.merges.plan(parse_expression(spelled))
            assert answer.json()["model"] == f"blend@{plan.recipe.digest()[:12]}"
        assert (await ask(http, answer.headers["x-amalgam-recipe"])).json()["model"] == answer.json()["model"]


@pytest.mark.parametrize(
    ("engine", "inputs", "held"),
    [
        ("float32", ("float32", "float32"), "F32"),
        ("float32", ("float32", "bfloat16"), "F32"),
        ("float32", ("float16", "bfloat16"), "F32"),
        ("float32", ("bfloat16", "bfloat16"), "BF16"),
        ("bfloat16", ("float32", "float32"), "BF16"),
        ("float16", ("float32", "bfloat16"), "F16"),
    ],
)
async def test_a_blend_is_in_the_engines_type_and_narrower_only_as_its_inputs_are(
    tmp_path: Path, engine: str, inputs: tuple[Any, Any], held: str
) -> None:
    async with (
        start_app(tmp_path, FakeEngine(dtype=engine), blender=True) as running_app,
        running_app.http(ADMIN_KEY) as admin,
    ):
        for name, dtype in zip(("a", "b"), inputs, strict=True):
            made = await push(admin, name, write_adapter(running_app.sources / name, seed=ord(name), dtype=dtype))
            assert made.status_code == 201, made.text
        answer = await ask(admin, "a + 0.3*b")
        assert answer.status_code == 200, answer.text
        [weights] = (running_app.folder / "blends").glob("**/adapter_model.safetensors")
        assert {entry.dtype for entry in read_header(weights).values()} == {held}
        plain = held == "BF16"
        recipe = answer.headers["x-amalgam-recipe"]
        assert recipe == ("a@1 + 0.3*b@1" if plain else f"task_arithmetic(a@1, 0.3*b@1; dtype={DTYPES[held]})")
        for again in (recipe, answer.json()["model"]):
            assert (await ask(admin, again)).json()["model"] == answer.json()["model"]
        assert (await ask(admin, "1.0*a")).json()["model"] == "a@1"
        merge = await running_app.services.merges.plan(parse_expression(recipe))
        assert answer.json()["model"] == f"blend@{merge.recipe.digest()[:12]}", "a merge of it has the same weights"


async def test_a_type_that_is_asked_for_is_that_of_the_blend(tmp_path: Path) -> None:
    async with (
        start_app(tmp_path, FakeEngine(dtype="float32"), blender=True) as running_app,
        running_app.http(ADMIN_KEY) as admin,
    ):
        for name in ("a", "b"):
            await push(admin, name, write_adapter(running_app.sources / name, seed=ord(name), dtype="float32"))
        answer = await ask(admin, "task_arithmetic(a, b; dtype=bfloat16)")
        assert answer.headers["x-amalgam-recipe"] == "task_arithmetic(a@1, b@1; dtype=bfloat16)"
        assert (await ask(admin, answer.headers["x-amalgam-recipe"])).json()["model"] == answer.json()["model"]
        [weights] = (running_app.folder / "blends").glob("**/adapter_model.safetensors")
        assert {entry.dtype for entry in read_header(weights).values()} == {"BF16"}


# --- what is refused


@pytest.mark.parametrize(
    ("model", "status", "code", "place"),
    [
        ("sql + ", 400, "invalid_expression", "the end"),
        ("sql + !", 400, "invalid_expression", "column 7"),
        ("sql + ../json", 400, "invalid_expression", "column 7"),
        ("sql + sqll", 404, "model_not_found", "column 7"),
        ("sql + json@9", 404, "model_not_found", "column 7"),
        ("sql + tiny", 404, "model_not_found", "column 7"),
        ("nosuch(sql, json)", 400, "unknown_method", ""),
        ("della(sql, json; seed=1)", 400, "blend_method_refused", "column 1"),
        ("ties(sql, json; space=delta)", 400, "blend_method_refused", "column 17"),
        ("dare_ties(sql, json; space=knots)", 400, "seed_needed", "column 1"),
        ("ties(sql, json; density=2)", 400, "parameter_refused", "density"),
        ("ties(sql, json; depth=2)", 400, "parameter_refused", "depth"),
        ("svd(sql, json; rank=17)", 400, "rank_too_large", "Column 16"),
        ("linear(sql, -1*json)", 400, "zero_weight_sum", ""),
        ("sql + sql@1", 400, "duplicate_input", ""),
        ("0*sql", 400, "nothing_to_merge", ""),
        (" + ".join(f"a{n}" for n in range(9)), 400, "too_many_inputs", "AMALGAM_BLEND_MAX_INPUTS"),
        ("sql + " + "0" * 1100 + "*json", 400, "invalid_expression", "column 1025"),
        ("blend@0123456789ab", 404, "model_not_found", ""),
    ],
)
async def test_what_cannot_be_built_is_refused_with_a_code_and_a_place(
    blending: RunningApp, http: httpx.AsyncClient, model: str, status: int, code: str, place: str
) -> None:
    error = assert_error(await ask(http, model), status, code)
    assert error["param"] == "model"
    assert place in error["message"]
    assert blending.services.inference.running == 0


async def test_near_names_are_suggested_within_an_expression(http: httpx.AsyncClient) -> None:
    assert "Did you mean: sql?" in assert_error(await ask(http, "json + sqll"), 404, "model_not_found")["message"]


async def test_a_blend_is_not_an_input_of_another(http: httpx.AsyncClient) -> None:
    name = (await ask(http, "sql + 0.5*json")).json()["model"]
    assert (await ask(http, f"{name} + code")).status_code in (400, 404)


async def test_methods_that_do_not_exist_cannot_be_allowed(tmp_path: Path) -> None:
    with pytest.raises(SettingRefused, match="tiez"):
        async with start_app(tmp_path, blend_methods="task_arithmetic,tiez"):
            pytest.fail("it started")


async def test_switched_off_there_are_none(tmp_path: Path) -> None:
    async with start_app(tmp_path, inline_blends=False) as running_app, running_app.http(API_KEY) as http:
        await fill(running_app, ("sql", "json"))
        assert_error(await ask(http, "sql + json"), 403, "blends_off")
        assert_error(await http.get("/v1/models/" + quote("sql + json")), 403, "blends_off")
        assert (await ask(http, "sql")).json()["model"] == "sql@1"
        assert not running_app.services.blender.alive


async def test_new_blends_are_counted_by_key_and_known_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Instant(monkeypatch)
    async with start_app(tmp_path, blends_per_minute=2) as running_app, running_app.http(API_KEY) as http:
        await fill(running_app, ("sql", "json"))
        for weight in (2, 3, 2, 3, 2):
            assert (await ask(http, f"sql + {weight}*json")).status_code == 200
        refused = await ask(http, "sql + 4*json")
        assert_error(refused, 429, "blend_rate_limited")
        assert 50 < int(refused.headers["retry-after"]) <= 60
        assert (await ask(http, "sql + 2*json")).status_code == 200
        async with running_app.http(ADMIN_KEY) as other:
            assert (await ask(other, "sql + 4*json")).status_code == 200


async def test_without_keys_a_made_up_key_is_no_new_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Instant(monkeypatch)
    async with start_app(tmp_path, blends_per_minute=1, admin_key=None, api_keys="") as running_app:
        async with running_app.http() as admin:
            for seed, name in enumerate(("sql", "json")):
                await push(admin, name, write_adapter(running_app.sources / name, seed=seed))
        codes = []
        for weight in (2, 3):
            async with running_app.http(f"made-up-{weight}") as http:
                codes.append((await ask(http, f"sql + {weight}*json")).status_code)
        assert codes == [200, 429]


# --- beside other things


async def test_inputs_stay_until_what_is_built_from_them_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instant = Instant(monkeypatch)
    instant.gate.clear()
    async with (
        start_app(tmp_path) as running_app,
        running_app.http(API_KEY) as http,
        running_app.http(ADMIN_KEY) as admin,
    ):
        monkeypatch.setattr("amalgam.services.retirement.FILE_GRACE_S", 0.01)
        await fill(running_app, ("sql", "json"))
        asked = asyncio.create_task(ask(http, "sql + json"))
        while not instant.orders:
            await asyncio.sleep(0.01)
        assert (await admin.delete("/admin/v1/adapters/json")).status_code == 200
        assert_error(await ask(http, "sql + 2*json"), 404, "model_not_found")
        await asyncio.sleep(0.05)
        assert all(Path(given.folder).is_dir() for given in instant.orders[0].inputs.values())
        instant.gate.set()
        assert (await asked).status_code == 200
        await running_app.services.adapters.settle()
        assert not Path(instant.orders[0].inputs["json@1"].folder).exists()
        assert_error(await ask(http, "sql + json"), 404, "model_not_found")
        assert_error(await ask(http, (await asked).json()["model"]), 404, "model_not_found")


class Gated(FakeEngine):
    """Its streams wait after their first piece."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.gate = asyncio.Event()

    async def pieces(self, body: Mapping[str, Any]) -> AsyncIterator[str]:
        async for piece in super().pieces(body):
            yield piece
            await self.gate.wait()


async def test_a_blend_that_streams_stays_while_others_come_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Instant(monkeypatch)
    engine = Gated()
    async with start_app(tmp_path, engine, blend_bytes=100_000) as running_app, running_app.http(API_KEY) as http:
        await fill(running_app, ("sql", "json"))
        first = (await ask(http, "sql + 2*json")).json()["model"]
        stream = asyncio.create_task(ask(http, "sql + 2*json", stream=True))
        for weight in range(3, 20):
            assert (await ask(http, f"sql + {weight}*json")).status_code == 200
            [folder] = (tmp_path / "blends").glob("amalgam-*/amalgam-blends-*")
            assert len(list(folder.iterdir())) * 4096 <= 100_000
        assert len(engine.freed) > 5
        assert first not in engine.freed
        engine.gate.set()
        assert (await stream).text.endswith("data: [DONE]\n\n")
        for weight in range(20, 30):
            await ask(http, f"sql + {weight}*json")
        assert first in engine.freed


async def test_the_engine_is_asked_first_whether_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instant = Instant(monkeypatch)
    async with start_app(tmp_path) as running_app, running_app.http(API_KEY) as http:
        await fill(running_app, ("sql", "json"))
        running_app.engine.current = "restarting"
        assert_error(await ask(http, "sql + json"), 503, "engine_not_ready")
        assert instant.orders == []
        running_app.engine.current = "ready"


async def test_labels_of_all_blends_are_one(blending: RunningApp, http: httpx.AsyncClient) -> None:
    for weight in range(5):
        await ask(http, f"sql + {weight + 2}*json")
    page = (await http.get("/metrics")).text
    ours = [line for line in page.splitlines() if line.startswith("amalgam_")]
    assert [line for line in ours if "blend@" in line] == []
    assert any(line.startswith('amalgam_requests_total{endpoint="chat_completions",adapter="blend"') for line in ours)
    for name in ("amalgam_blends_built_total", "amalgam_blend_bytes", "amalgam_blends", "amalgam_blender_up"):
        assert any(line.startswith(f"{name} ") and not line.endswith(" 0.0") for line in ours), name
    for step in ("parse", "wait", "read", "merge", "write"):
        assert any(f'amalgam_blend_step_seconds_count{{step="{step}"}}' in line for line in ours)


async def test_a_blend_process_that_is_killed_fails_what_it_was_at_and_is_back_for_the_next(
    blending: RunningApp, http: httpx.AsyncClient
) -> None:
    blender = blending.services.blender
    assert (await ask(http, "sql + 0.5*json")).status_code == 200
    pid = blender.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    asked = asyncio.create_task(ask(http, "sql + 99*json"))
    await asyncio.sleep(0.2)
    os.kill(pid, signal.SIGKILL)
    refused = await asked
    assert_error(refused, 503, "blend_unavailable")
    assert refused.headers["retry-after"] == "1"
    assert (await ask(http, "sql + 0.5*json")).status_code == 200
    async with asyncio.timeout(20):
        while (await ask(http, "sql + 99*json")).status_code != 200:
            await asyncio.sleep(0.1)
    assert blender.restarts >= 1
