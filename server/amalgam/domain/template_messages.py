"""What the server and the template process say to each other; `messages` has them beside those of the other processes.

    to the template process     `TemplateCheck`, `TemplateRender`
    from the template process   `TemplateReady`, `TemplateFormat`, `TemplateText`, `TemplateFault`

They are dataclasses, and the template process reads and writes them without Pydantic, which takes longer to import than
everything else that it needs. The server, which trusts a template with nothing, checks every answer with Pydantic.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, NewType

from amalgam.errors.internal import MessageUnreadable

ContentFormat = Literal["string", "openai"]
"""It tells whether a message's content is a text, or a list of parts, as OpenAI's clients send it."""
AsciiJson = NewType("AsciiJson", str)
"""It is a value of clients or of a tokenizer, written as JSON in ASCII: such a value may hold half of a surrogate pair,
which no line in UTF-8 can carry."""


class _Strict:
    """How Pydantic reads these messages, where it does: nothing more, nothing less, and no type for another."""

    __slots__ = ()
    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid", "strict": True}


@dataclass(frozen=True, slots=True)
class TemplateCheck(_Strict):
    """Asks which form of content a template reads."""

    id: int
    template: AsciiJson
    """It is a text, in Jinja."""
    values: AsciiJson
    """It is an object: what the template may read."""
    type: Literal["check"] = "check"


@dataclass(frozen=True, slots=True)
class TemplateRender(_Strict):
    """Asks for the prompt of a conversation."""

    id: int
    template: AsciiJson
    """It is a text, in Jinja."""
    messages: AsciiJson
    """It is a list."""
    tools: AsciiJson
    """It is a list, or null."""
    values: AsciiJson
    """It is an object: what else the template may read."""
    continue_final_message: bool
    """It tells whether the answer goes on where the last message ends."""
    type: Literal["render"] = "render"


@dataclass(frozen=True, slots=True)
class TemplateReady(_Strict):
    """The process reads orders from now on."""

    type: Literal["ready"] = "ready"


@dataclass(frozen=True, slots=True)
class TemplateFormat(_Strict):
    """Answers `TemplateCheck`."""

    id: int
    format: ContentFormat
    type: Literal["format"] = "format"


@dataclass(frozen=True, slots=True)
class TemplateText(_Strict):
    """Answers `TemplateRender`."""

    id: int
    text: str
    type: Literal["text"] = "text"


@dataclass(frozen=True, slots=True)
class TemplateFault(_Strict):
    """Answers either where there is no result."""

    id: int
    fault: Literal["refused", "failed"]
    """It tells whether the template refused the conversation, or is itself at fault."""
    reason: str
    """It is in ASCII and not long."""
    type: Literal["fault"] = "fault"


TemplateOrder = TemplateCheck | TemplateRender
TemplateAnswer = TemplateFormat | TemplateText | TemplateFault
_ORDERS: Final[dict[str, type[TemplateOrder]]] = {"check": TemplateCheck, "render": TemplateRender}


def packed(value: Any) -> AsciiJson:
    """``value`` for a field of an order; what a tokenizer calls a token may be an object, and is sent as its text."""
    return AsciiJson(json.dumps(value, default=str))


def unpacked(field: AsciiJson) -> Any:
    """The value that was `packed`."""
    return json.loads(field)


def read_order(line: bytes) -> TemplateOrder:
    """The order of ``line``.

    Raises:
        MessageUnreadable: it is none.
    """
    try:
        fields = json.loads(line)
        return _ORDERS[fields["type"]](**fields)
    except (ValueError, KeyError, TypeError) as error:
        raise MessageUnreadable(f"{type(error).__name__} in an order to the template process") from None


def written_reply(reply: TemplateReady | TemplateAnswer) -> bytes:
    """The line of ``reply``, with its end."""
    return json.dumps(dataclasses.asdict(reply), ensure_ascii=False).encode() + b"\n"
