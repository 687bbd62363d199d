"""Pictures that are found out late: the cause is told, and no class of vLLM's."""

import pytest

from amalgam.engine.media_failures import media_failure

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
