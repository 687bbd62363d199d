"""Types of parts that vLLM reads in the content of each dialect, and what their fields have to be.

A part that vLLM does not know it refuses, or passes over without a word; a test asks it about every type of these
tables, and about every other that this server knows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from amalgam.errors.requests import FieldRefused

MAX_TEXT: Final = 1 << 22
PartCheck = Callable[[str, str, str, Any], None]
Fields = Mapping[str, PartCheck]
"""It maps a field of a part to its check, which takes the request's field, its own name, the part's type and its value.
"""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a content may consist of.

    Attributes:
        kinds: by their type.
        says: of what it refuses.
        bare: whether texts may stand among them without a type.
    """

    kinds: Mapping[str, Fields]
    says: str
    bare: bool = False


def _needs_text(name: str, key: str, kind: str, value: Any) -> None:
    if not isinstance(value, str):
        raise FieldRefused(name, f"a part of type {kind} needs {key}, a text")
    if len(value) > MAX_TEXT:
        raise FieldRefused(name, f"{key} of a part must have at most {MAX_TEXT} characters")


def _may_have_text(name: str, key: str, kind: str, value: Any) -> None:
    if value is not None:
        _needs_text(name, key, kind, value)


def _may_have_object(name: str, key: str, kind: str, value: Any) -> None:
    if value is not None and not isinstance(value, dict):
        raise FieldRefused(name, f"{key} of a part of type {kind} must be an object")


_TEXT: Final[Fields] = {"text": _needs_text}
_REFUSAL: Final[Fields] = {"refusal": _needs_text}
_MEDIA: Final[Fields] = {}
"""Media are checked elsewhere."""
_THINKING: Final[Fields] = {"thinking": _needs_text, "signature": _may_have_text}
_PICTURE: Final[Mapping[str, Fields]] = {"text": _TEXT, "image": _MEDIA}

IN_CHATS: Final = Parts(
    {
        **dict.fromkeys(("text", "input_text", "output_text"), _TEXT),
        "refusal": _REFUSAL,
        "thinking": _THINKING,
        "tool_reference": {"name": _needs_text},
        **dict.fromkeys(("image_url", "input_image", "input_audio", "audio_url"), _MEDIA),
    },
    "content must be text, or parts of type text, or media that the model reads; send files as text",
    bare=True,
)
IN_ITEMS: Final = Parts(
    {"input_text": _TEXT, "input_image": _MEDIA},
    "content must be text, or parts of type input_text, or pictures that the model reads; send files as text, and "
    "calls and their outputs as items",
)
IN_SAID_ITEMS: Final = Parts(
    {**dict.fromkeys(("input_text", "output_text"), _TEXT), "refusal": _REFUSAL},
    "content must be text, or parts of type output_text, where the assistant speaks; send its calls as items",
)
IN_REASONING: Final = Parts(
    {"reasoning_text": _TEXT, "summary_text": _TEXT},
    "reasoning must be of parts of type reasoning_text or summary_text",
)
IN_SYSTEM: Final = Parts({"text": _TEXT}, "must be text, or parts of type text; send pictures in a message")
IN_RESULTS: Final = Parts(
    {**_PICTURE, "tool_reference": {"tool_name": _may_have_text, "name": _may_have_text}},
    "content must be text, or blocks of type text, image or tool_reference in a tool_result; send files as text",
)
_SAYS: Final = "content must be text, or blocks of type {}; send files as text"
BLOCKS_BY_ROLE: Final[Mapping[str, Parts]] = {
    "user": Parts(
        {**_PICTURE, "tool_result": {"tool_use_id": _may_have_text}},
        _SAYS.format("text, image or tool_result where a user speaks"),
    ),
    "assistant": Parts(
        {
            **_PICTURE,
            "tool_use": {"name": _needs_text, "id": _may_have_text, "input": _may_have_object},
            "thinking": _THINKING,
            "redacted_thinking": {"data": _may_have_text},
        },
        _SAYS.format("text, image, tool_use or thinking where the assistant speaks"),
    ),
    "system": Parts({"text": _TEXT}, _SAYS.format("text where the system speaks")),
}
"""It holds for Anthropic's dialect."""
