"""Pictures that are found out late: the cause is told, and no class of vLLM's."""

import asyncio
from typing import Any

import pytest
from pydantic import TypeAdapter
from starlette.requests import Request
from starlette.responses import JSONResponse

from amalgam.engine.media_failures import media_failure
from amalgam.errors import AmalgamError
from amalgam.errors.internal import SoundUnusable

APPLIED = (
    "Failed to apply Qwen2_5_VLProcessor on data={'images': [<PIL.Image.Image mode=RGB size=1x300>]} with kwargs={}"
)
TAKEN = "messages: the model cannot take a picture or sound as it is"
UNPACKED = "messages: a picture cannot be unpacked"


@pytest.mark.parametrize(
    ("message", "cause", "told"),
    [
        (
            "Failed to load image: image file is truncated (3 bytes not processed)", None,
            f"{UNPACKED} (image file is truncated (3 bytes not processed)). Send a whole file.",
        ),
        (
            "Failed to load image: cannot identify image file <_io.BytesIO object>", None,
            f"{UNPACKED} (cannot identify image file). Send a whole file.",
        ),
        (
            APPLIED, ValueError("absolute aspect ratio must be\nsmaller than 200."),
            f"{TAKEN} (absolute aspect ratio must be smaller than 200). Send another one.",
        ),
        ("Audio is too short", None, "messages: a sound is too short for the model. Send a longer one."),
        (APPLIED, None, f"{TAKEN}. Send another one."),
    ],
)  # fmt: skip
def test_the_cause_is_told(message: str, cause: Exception | None, told: str) -> None:
    found = media_failure("messages", message, cause)
    assert found is not None
    assert found.message == told
    assert found.code == "media_unsupported"


def test_anything_else_is_not_about_media() -> None:
    assert media_failure("messages", "The prompt is too long. Failed to load image: x") is None


def refused(raised: Exception | None, field: str = "messages") -> AmalgamError:
    """What an answer of vLLM's handler comes to that raised, or told the same in a body of its own."""
    from amalgam.engine.vllm_endpoints import EndpointSpec, answer
    from amalgam.engine.written_answers import AnswerThreads

    async def handler(body: Any, raw_request: Request) -> JSONResponse:
        if raised is not None:
            raise raised
        return JSONResponse({"error": {"message": APPLIED}}, 400)

    spec = EndpointSpec(TypeAdapter(dict[str, Any]), handler, "any")
    request = Request({"type": "http", "headers": [], "method": "POST", "path": "/", "app": None})
    with pytest.raises(AmalgamError) as caught:
        asyncio.run(answer(spec, {field: []}, request, AnswerThreads()))
    return caught.value


def test_whichever_way_a_handler_tells_it_the_request_is_at_fault() -> None:
    applied = ValueError(APPLIED)
    applied.__cause__ = ValueError("too narrow")
    told = {
        "a sound has none. Send one.": refused(SoundUnusable("a sound has none", "Send one")),
        "the model cannot take a picture or sound as it is (too narrow). Send another one.": refused(applied),
        "the model cannot take a picture or sound as it is. Send another one.": refused(None),
    }
    for words, error in told.items():
        assert (error.status, error.code, error.message) == (400, "media_unsupported", f"messages: {words}")
    assert refused(SoundUnusable("a sound has none", "Send one"), "input").param == "input"


def test_a_report_of_pydantics_is_told_by_its_first_field() -> None:
    with pytest.raises(ValueError, match="validation error") as caught:
        TypeAdapter(dict[str, int]).validate_python({"detail": "x"})
    error = refused(caught.value)
    assert (error.status, error.param) == (400, "detail")
    assert "validation error" not in error.message
