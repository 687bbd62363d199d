"""vLLM's two adapter routes: its bodies, its words, our rules."""

from pathlib import Path

import httpx
import pytest

from tests.support.running_app import ADMIN_KEY, API_KEY, RunningApp, assert_error, write_adapter

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


async def load(admin: httpx.AsyncClient, name: str, path: Path | str, **more: object) -> httpx.Response:
    return await admin.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(path)} | more)


async def test_load_answer_reload_and_unload(running_app: RunningApp, admin: httpx.AsyncClient) -> None:
    folder = write_adapter(running_app.sources / "team a" / "one", seed=1)
    answer = await load(admin, "compat", folder)
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'compat' added successfully.")
    assert answer.headers["content-type"].startswith("text/plain")
    chat = await admin.post("/v1/chat/completions", json=CHAT | {"model": "compat"})
    assert chat.json()["model"] == "compat@1"

    again = await load(admin, "compat", folder)
    error = assert_error(again, 400, "lora_already_loaded")
    assert error["message"].startswith("The lora adapter 'compat' has already been loaded.")
    other = write_adapter(running_app.sources / "two", seed=2)
    assert_error(await load(admin, "compat", other), 400, "lora_already_loaded")

    assert (await load(admin, "compat", other, load_inplace=True)).status_code == 200
    chat = await admin.post("/v1/chat/completions", json=CHAT | {"model": "compat"})
    assert chat.json()["model"] == "compat@2"
    assert (await load(admin, "compat", other, load_inplace=True)).status_code == 200
    assert (await admin.get("/admin/v1/adapters/compat")).json()["default_version"] == 2

    gone = await admin.post("/v1/unload_lora_adapter", json={"lora_name": "compat", "lora_int_id": 7})
    assert (gone.status_code, gone.text) == (200, "Success: LoRA adapter 'compat' removed successfully.")
    assert_error(await admin.post("/v1/chat/completions", json=CHAT | {"model": "compat"}), 404, "model_not_found")
    assert_error(await admin.post("/v1/unload_lora_adapter", json={"lora_name": "compat"}), 404, "adapter_not_found")


async def test_what_sidecars_send_besides_is_taken(running_app: RunningApp, admin: httpx.AsyncClient) -> None:
    folder = write_adapter(running_app.sources / "sidecar", seed=3)
    more = {"base_model_name": "anything", "is_3d_lora_weight": False, "load_inplace": False}
    assert (await load(admin, "sidecar", folder, **more)).status_code == 200
    assert (await load(admin, "sidecar-url", f"file://{folder}")).status_code == 200


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/etc", 403, "path_denied"), ("{root}/../base", 403, "path_denied"), ("relative", 403, "path_denied"),
        ("./relative", 403, "path_denied"), ("../../x", 403, "path_denied"), ("{root}/a%2e%2e", 403, "path_denied"),
        ("{root}/none", 404, "source_not_found"), ("http://127.0.0.1/x", 400, "unsupported_source"),
        ("", 400, "invalid_value"), ("x" * 4097, 400, "invalid_value"), ("a\x00b", 400, "invalid_value"),
    ],
)  # fmt: skip
async def test_paths_are_confined(
    running_app: RunningApp, admin: httpx.AsyncClient, path: str, status: int, code: str
) -> None:
    answer = await load(admin, "confined", path.format(root=running_app.sources))
    assert_error(answer, status, code)
    assert str(running_app.sources) not in answer.text
    assert running_app.staged() == []


async def test_bodies_and_names_are_bounded(running_app: RunningApp, admin: httpx.AsyncClient) -> None:
    folder = write_adapter(running_app.sources / "bounded", seed=4)
    assert_error(await load(admin, "../x", folder), 400, "invalid_name")
    assert_error(await load(admin, "tiny", folder), 409, "name_reserved")
    assert_error(await load(admin, "x", folder, is_3d_lora_weight=True), 400, "invalid_value")
    assert_error(await load(admin, "x", folder, lora_rank=1), 400, "invalid_value")
    for body in ({}, {"lora_name": ""}, {"lora_name": 5}, {"lora_name": "x" * 257}, {"lora_name": "x", "y": 1}):
        assert_error(await admin.post("/v1/unload_lora_adapter", json=body), 400, "invalid_value")
    assert_error(await admin.post("/v1/unload_lora_adapter", json={"lora_name": "a\x00/.."}), 404, "adapter_not_found")


async def test_a_bad_adapter_is_refused_before_the_engine(running_app: RunningApp, admin: httpx.AsyncClient) -> None:
    loaded = list(running_app.engine.loaded)
    answer = await load(admin, "bad", write_adapter(running_app.sources / "bad", rank=17))
    assert assert_error(answer, 422, "rank_too_large")["type"] == "invalid_adapter"
    assert running_app.engine.loaded == loaded


async def test_client_keys_load_and_unload_nothing(running_app: RunningApp) -> None:
    for key, status in ((API_KEY, 403), (None, 401), (ADMIN_KEY + "x", 401)):
        async with running_app.http(key) as session:
            assert_error(await load(session, "x", "/etc"), status, "invalid_api_key")
            assert_error(
                await session.post("/v1/unload_lora_adapter", json={"lora_name": "x"}), status, "invalid_api_key"
            )
