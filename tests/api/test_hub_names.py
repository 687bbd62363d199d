"""A hub's ``org/name`` is no adapter's name: whoever gives it as one is told so, whichever way it came in."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.running_app import RunningApp, assert_error, push, write_adapter

NAME = "org/sql-adapter"
BODIES: dict[str, dict[str, Any]] = {
    "/admin/v1/adapters": {"name": NAME, "source": "file:///nowhere"},
    "/admin/v1/merges": {"name": NAME, "expression": "org-sql-adapter + org-sql-adapter@1"},
    "/v1/load_lora_adapter": {"lora_name": NAME, "lora_path": "/nowhere"},
}


@pytest.mark.parametrize("path", BODIES)
async def test_the_refusal_says_how_to_call_it(admin: httpx.AsyncClient, path: str) -> None:
    answer = await admin.post(path, json=BODIES[path])
    assert answer.status_code == 400, answer.text
    assert "hf://org/name" in answer.json()["error"]["message"]
    assert "org-name" in answer.json()["error"]["message"]


async def test_an_upload_says_so_too_and_a_request_for_it_is_told_the_name_that_is_served(
    running_app: RunningApp, admin: httpx.AsyncClient, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "sql")
    error = assert_error(await push(admin, NAME, folder), 400, "invalid_name")
    assert "org-name" in error["message"]
    assert (await push(admin, "org-sql-adapter", folder)).status_code == 201
    asked = {"model": NAME, "prompt": "hi"}
    error = assert_error(await admin.post("/v1/completions", json=asked), 404, "model_not_found")
    assert "org-sql-adapter" in error["message"]
