"""What messages and items look like in each dialect, as Pydantic models: the OpenAPI document shows them.

They are what clients may send, before it is told in the parts that vLLM reads. See `shapes`.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from amalgam.api.fields.contents import MAX_CALLS, MAX_ITEMS, MAX_MESSAGES, MAX_PARTS, MAX_ROLE
from amalgam.api.fields.media import MEDIA_PARTS
from amalgam.api.fields.parts import MAX_TEXT
from amalgam.api.fields.past_blocks import BLOCKS
from amalgam.api.fields.past_items import ITEMS


class Shape(BaseModel):
    """A part of a request. Keys that nobody knows may be there, and reach the engine as they are."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


Text = Annotated[str, Field(max_length=MAX_TEXT)]
AnyJson = Annotated[Any, Field(description="any JSON, nested at most 32 deep")]
Role = Annotated[str, Field(max_length=MAX_ROLE)]


# --- parts


class TextPart(Shape):
    """A text."""

    type: Literal["text"]
    text: Text


class WordedPart(Shape):
    """A text in other words."""

    type: Literal["input_text", "output_text"]
    text: Text


class RefusalPart(Shape):
    """What a model said in place of an answer."""

    type: Literal["refusal"]
    refusal: Text


class ThinkingPart(Shape):
    """What a model thought; a signature of another service says nothing here."""

    type: Literal["thinking"]
    thinking: Text


class ToolReferencePart(Shape):
    """The name of a tool that a search for tools found."""

    type: Literal["tool_reference"]
    name: Text | None = None
    tool_name: Text | None = None


class MediaPart(Shape):
    """A picture or a sound, where the model reads it: a data URL or base64, in the field that its type speaks of."""

    type: Literal["image_url", "input_image", "image", "input_audio", "audio_url"]
    image_url: AnyJson = None
    source: AnyJson = None
    input_audio: AnyJson = None
    audio_url: AnyJson = None


class PicturePart(Shape):
    """A picture in Anthropic's dialect, where the model reads pictures."""

    type: Literal["image"]
    source: AnyJson = None


class DocumentPart(Shape):
    """A document in Anthropic's dialect, as text or as parts; the model reads it as text."""

    type: Literal["document"]
    source: "DocumentSource"


class DocumentSource(Shape):
    """What is written in a document."""

    type: Literal["text", "content"]
    data: AnyJson = None
    content: AnyJson = None


class SearchResultPart(Shape):
    """A result of a search, or the state of a browser, in Anthropic's dialect; the model reads it as text."""

    type: Literal["search_result", "browser_state"]


_ResultPart = str | TextPart | PicturePart | ToolReferencePart | DocumentPart | SearchResultPart


class ToolResultPart(Shape):
    """What a tool answered, in Anthropic's dialect."""

    type: Literal["tool_result"]
    tool_use_id: Text | None = None
    content: str | Annotated[list[_ResultPart], Field(max_length=MAX_PARTS)] | None = None


class ToolUsePart(Shape):
    """A call that a model made, in Anthropic's dialect."""

    type: Literal["tool_use"]
    id: Text | None = None
    name: Text
    input: dict[str, Any] | None = None


_OF_THE_MODEL: Final = frozenset(
    {"tool_use", "server_tool_use", "mcp_tool_use", "thinking", "redacted_thinking", "tool_reference"}
)
_SHOWN: Final = frozenset({"text", "tool_result", "document", "search_result", *MEDIA_PARTS})


class KnownBlock(Shape):
    """A block of Anthropic's own tools: told as results and texts, or left out; the manual says which."""

    type: Annotated[str, Field(json_schema_extra={"enum": sorted(BLOCKS.keys() - _SHOWN - _OF_THE_MODEL)})]


_OWN_BLOCKS: Final = sorted(_SHOWN | {"tool_use", "thinking", "tool_reference"})
_OWN_PARTS: Final = sorted({*_OWN_BLOCKS, "input_text", "output_text", "refusal"})


class AnyBlock(Shape):
    """A block that a model made, of any type: what nobody knows is left out, and named in ``x-amalgam-ignored``."""

    type: Annotated[str, Field(json_schema_extra={"not": {"enum": _OWN_BLOCKS}})]


class AnyPart(Shape):
    """A part that a model made, of any type: what nobody knows is left out, and named in ``x-amalgam-ignored``."""

    type: Annotated[str, Field(json_schema_extra={"not": {"enum": _OWN_PARTS}})]


# --- messages of a chat


class ChatResultPart(Shape):
    """What a tool answered, in Anthropic's dialect; it becomes a message of the role ``tool``."""

    type: Literal["tool_result"]
    tool_use_id: Text | None = None
    content: "str | Annotated[list[_ChatPart], Field(max_length=MAX_PARTS)] | None" = None


class CalledFunction(Shape):
    """A function, and what a model called it with."""

    name: str
    arguments: str | dict[str, Any] | None = None


class ToolCall(Shape):
    """A call that a model made."""

    function: CalledFunction


class FreeText(Shape):
    """A tool of free text, and what a model called it with."""

    name: str
    input: AnyJson = None


class FreeCall(Shape):
    """A call of a tool of free text; it becomes one of a function."""

    type: Literal["custom"]
    custom: FreeText


_ChatPart = (
    str | TextPart | WordedPart | RefusalPart | ThinkingPart | ToolReferencePart | MediaPart | DocumentPart
) | SearchResultPart
_Calls = Annotated[list[ToolCall | FreeCall], Field(max_length=MAX_CALLS)] | None


class ChatMessage(Shape):
    """One message of a conversation. Blocks of Anthropic's dialect are told in parts and messages of a chat."""

    role: Role
    name: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    content: str | Annotated[list[_ChatPart | ChatResultPart | KnownBlock], Field(max_length=MAX_PARTS)] | None = None
    tool_calls: _Calls = None


class ModelMessage(Shape):
    """What a model said, here or elsewhere."""

    role: Literal["assistant"]
    name: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    content: (
        str
        | Annotated[list[_ChatPart | ChatResultPart | ToolUsePart | KnownBlock | AnyPart], Field(max_length=MAX_PARTS)]
        | None
    ) = None
    tool_calls: _Calls = None


Messages = Annotated[list[ModelMessage | ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]


# --- messages of Anthropic's dialect

_TurnPart = str | TextPart | PicturePart | ToolResultPart | DocumentPart | SearchResultPart
_NoCalls = Annotated[list[Any], Field(max_length=0)] | None
SystemText = str | Annotated[list[TextPart], Field(max_length=MAX_PARTS)]


class UserTurn(Shape):
    """What a user said, and what tools gave."""

    role: Literal["user"]
    content: str | Annotated[list[_TurnPart | KnownBlock], Field(max_length=MAX_PARTS)]
    tool_calls: _NoCalls = None


class SystemTurn(Shape):
    """What the system said in between, and changes of the tools."""

    role: Literal["system"]
    content: (
        str
        | Annotated[list[str | TextPart | DocumentPart | SearchResultPart | KnownBlock], Field(max_length=MAX_PARTS)]
    )
    tool_calls: _NoCalls = None


class ModelTurn(Shape):
    """What a model said, here or elsewhere."""

    role: Literal["assistant"]
    content: (
        str
        | Annotated[list[_TurnPart | ToolUsePart | ThinkingPart | KnownBlock | AnyBlock], Field(max_length=MAX_PARTS)]
    )
    tool_calls: _NoCalls = None


Turns = Annotated[list[UserTurn | ModelTurn | SystemTurn], Field(min_length=1, max_length=MAX_MESSAGES)]


# --- items of the Responses dialect

_GivenPart = str | TextPart | WordedPart | MediaPart
_GivenParts = Annotated[list[_GivenPart], Field(max_length=MAX_PARTS)]


class SaidPart(Shape):
    """A text that a model said."""

    type: Annotated[str, Field(json_schema_extra={"not": {"enum": ["refusal"]}})] | None = None
    text: Text


class GivenItem(Shape):
    """A message to the model."""

    type: Literal["message"] | None = "message"
    role: Literal["user", "system", "developer"]
    content: str | _GivenParts
    tool_calls: _NoCalls = None


class SaidItem(Shape):
    """A message of the model."""

    type: Literal["message"] | None = "message"
    role: Literal["assistant"]
    content: str | Annotated[list[str | SaidPart | RefusalPart], Field(max_length=MAX_PARTS)]
    tool_calls: _NoCalls = None


class CallItem(Shape):
    """A call that a model made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str | dict[str, Any] | None = None


class FreeCallItem(Shape):
    """A call of a tool of free text."""

    type: Literal["custom_tool_call"]
    call_id: str
    name: str
    input: str


class OutputItem(Shape):
    """What came of a call; what is no text is told as JSON."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str | None = None
    output: str | _GivenParts | dict[str, Any] | bool | float | None = None


class ReasoningItem(Shape):
    """What a model thought; what of it is only encrypted is left out."""

    type: Literal["reasoning"]
    content: AnyJson = None
    summary: AnyJson = None


_OWN_ITEMS: Final = frozenset(kind for kind, spec in ITEMS.items() if spec.rule in ("read", "refused"))


class OtherItem(Shape):
    """An item of another service's tools: told as calls, heeded, or left out; the manual says which."""

    type: Annotated[str, Field(json_schema_extra={"not": {"enum": sorted(_OWN_ITEMS)}})]


_Item = GivenItem | SaidItem | CallItem | FreeCallItem | OutputItem | ReasoningItem | OtherItem
ResponseInput = str | Annotated[list[_Item], Field(min_length=1, max_length=MAX_ITEMS)]
