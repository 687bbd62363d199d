"""Tiny models that see, in a real server: pictures in requests, and adapters by names of both generations.

Each starts a server of its own, so they run with ``make test-models`` alone; and where there is torchvision, without
which vLLM has no class for a model that sees.
"""

import base64
import importlib.util
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import RunningServer
from tests.models.pictures import MARKS, build, data_url, family, picture, prepared, save, write_processor
from tests.models.served import apart, chatted, difference, expected, serving
from tests.models.tiny_models import respell, write_adapter

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not os.environ.get("AMALGAM_TEST_MODELS"), reason="a server each; run with make test-models"),
    pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="vLLM's classes need torchvision"),
]

EXACT = 1e-4
"""Nats, in float32: sums in another order."""
QUESTION = {"type": "text", "text": "What is this?"}
LANGUAGE = r".*(language|text)_model.*\.(q_proj|k_proj|v_proj|o_proj)"
TOWERS = {
    "llava": (r".*vision_tower.*\.q_proj", "vision_tower"),
    "qwen": (r".*visual.*\.qkv", "visual"),
    "idefics": (r".*vision_model.*\.q_proj", "vision_model"),
    "smolvlm": (r".*vision_model.*\.q_proj", "vision_model"),
}
"""What an adapter of the part that sees is for, and what the refusal names; of other families it is as in LLaVA."""


def bomb() -> str:
    """A picture of a few hundred bytes that says it has 3.6 thousand million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def shown(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


@pytest.mark.parametrize("name", sorted(MARKS))
def test_pictures_are_seen_with_adapters_of_both_generations_of_names(name: str, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    row = family(name, write_processor(name, tmp_path / "base"))
    model = build(row)
    save(model, tmp_path / "base")
    images = [picture(0), picture(1)]
    given = [prepared(tmp_path / "base", "What is this?", image) for image in images]
    base = [expected(model, **inputs) for inputs in given]
    today, older, tower = (tmp_path / "sources" / folder for folder in ("today", "older", "tower"))
    adapted = write_adapter(model, today, LANGUAGE, seed=1)
    tuned = [expected(adapted, **inputs) for inputs in given]
    write_adapter(build(row), older, LANGUAGE, seed=1)
    respell(older, row.older)
    seeing, named = TOWERS.get(name.partition("2")[0].partition("3")[0], TOWERS["llava"])
    write_adapter(build(row), tower, seeing, seed=1)
    assert apart(base[0], base[1]) > 10 * EXACT
    assert apart(base[0], tuned[0]) > 10 * EXACT

    with serving(tmp_path, {"today": today, "older": older}, "--dtype", "float32", "--max-model-len", "256") as server:
        for image, plain, changed in zip(images, base, tuned, strict=True):
            part = shown(data_url(image))
            assert difference(chatted(server, "base", part, QUESTION), plain) < EXACT
            as_a_text = {"type": "image_url", "image_url": data_url(image)}
            assert difference(chatted(server, "base", as_a_text, QUESTION), plain) < EXACT
            for model_name in ("today", "older"):
                assert difference(chatted(server, model_name, part, QUESTION), changed) < EXACT
        _other_dialects_see_too(server, data_url(images[0]))
        _what_is_too_much_is_refused(server, data_url(images[0]))
        with server.admin() as admin:
            refused = admin.post("/admin/v1/adapters", json={"name": "tower", "source": f"file://{tower}"})
        assert refused.status_code == 422, refused.text
        assert "unsupported_modules" in refused.text
        assert named in refused.text
        assert difference(chatted(server, "base", shown(data_url(images[0])), QUESTION), base[0]) < EXACT


def _other_dialects_see_too(server: RunningServer, url: str) -> None:
    data = url.partition(",")[2]
    source = {"type": "base64", "media_type": "image/png", "data": data}
    anthropic = {"role": "user", "content": [{"type": "image", "source": source}, QUESTION]}
    item = {"type": "message", "role": "user", "content": [
        {"type": "input_image", "image_url": url, "detail": "auto"}, {"type": "input_text", "text": "What is this?"}
    ]}  # fmt: skip
    with server.client() as client:
        for path, body in (
            ("/v1/messages", {"model": "older", "messages": [anthropic], "max_tokens": 2}),
            ("/v1/responses", {"model": "older", "input": [item], "max_output_tokens": 2}),
        ):
            answer = client.post(path, json=body)
            assert answer.status_code == 200, (path, answer.text)


def _what_is_too_much_is_refused(server: RunningServer, url: str) -> None:
    refused = {
        "media_too_large": [[shown(bomb())], [shown(url)] * 9],
        "media_unsupported": [
            [shown("http://127.0.0.1:9/x.png")], [shown("file:///etc/hostname")], [shown("data:image/png;base64,AAAA")],
            [shown(url[:-40])],
            [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}],
        ],
        "invalid_value": [
            [shown("data:image/png;base64,#")], [{"type": "video_url", "video_url": {"url": url}}],
            [{"type": "text", "text": "a", "uuid": "1", "image_url": {"url": "http://127.0.0.1:9/x.png"}}],
        ],
    }  # fmt: skip
    with server.client() as client:
        for code, contents in refused.items():
            for parts in contents:
                body = {"model": "base", "messages": [{"role": "user", "content": [QUESTION, *parts]}]}
                answer = client.post("/v1/chat/completions", json=body)
                assert (answer.status_code, answer.json()["error"]["code"]) == (400, code), answer.text
        # What says that it is a picture and is cut short is found out by who unpacks it, and that is a 400 as well.
        body = {"model": "base", "messages": [{"role": "user", "content": [shown(url[: len(url) // 2 // 4 * 4])]}]}
        assert client.post("/v1/chat/completions", json=body).status_code == 400
