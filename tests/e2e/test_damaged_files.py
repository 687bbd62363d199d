"""A stored file is flipped or cut after registration: its next load is refused, and nobody else notices."""

import os
from collections.abc import Callable
from pathlib import Path

import httpx
import openai
import pytest

from tests.adapter_factory import write_lora
from tests.e2e.conftest import RunningServer
from tests.e2e.test_adapter_lifecycle import logprobs, push

COUNT = "amalgam_artifacts_damaged_total"


def flip(path: Path) -> None:
    """One bit of one weight, in place."""
    with path.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        [byte] = file.read(1)
        file.seek(-1000, os.SEEK_END)
        file.write(bytes([byte ^ 0x40]))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink], ids=["flipped", "cut", "gone"])
def test_harm_to_a_file_is_an_error_with_a_code(
    server: RunningServer,
    admin: httpx.Client,
    client: openai.OpenAI,
    tmp_path: Path,
    harm: Callable[[Path], None],
    request: pytest.FixtureRequest,
) -> None:
    name = f"harmed-{request.node.callspec.id}"
    seed = 60 + ["flipped", "cut", "gone"].index(request.node.callspec.id)
    made = push(admin, name, write_lora(tmp_path / "a", rank=4, seed=seed))
    assert made.status_code == 201, made.text
    digest = made.json()["digest"]
    weights = server.store / "objects" / digest[:2] / digest / "adapter_model.safetensors"
    whole, expected, other = weights.read_bytes(), logprobs(client, name), logprobs(client, "sql")
    assert admin.post(f"/admin/v1/adapters/{name}:unload").status_code == 200
    counted, restarts = server.metric(COUNT), server.metric("amalgam_engine_restarts_total")
    harm(weights)
    for model in (name, f"{name} + 0.5*sql"):
        with pytest.raises(openai.InternalServerError) as caught:
            logprobs(client, model)
        assert caught.value.code == "artifact_damaged"
    assert server.metric(COUNT) == counted + 1
    assert logprobs(client, "sql") == pytest.approx(other, abs=0.02)
    assert admin.post(f"/admin/v1/adapters/{name}:verify").json()["versions"] == {f"{name}@1": False}

    weights.write_bytes(whole)
    with pytest.raises(openai.InternalServerError):
        logprobs(client, name)
    assert admin.post(f"/admin/v1/adapters/{name}:verify").json()["versions"] == {f"{name}@1": True}
    assert logprobs(client, name) == pytest.approx(expected, abs=0.02)
    assert server.metric("amalgam_engine_restarts_total") == restarts
    assert admin.delete(f"/admin/v1/adapters/{name}").status_code in (200, 202, 204)
