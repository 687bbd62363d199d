"""What the parts of a request look like, as Pydantic models: the OpenAPI document shows them.

No request is read with them: the checks beside the fields are quicker, and say better what is wrong. A test holds that
both take and refuse the same; what only a check can count (nesting, automata, products of fields) the descriptions say.
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from amalgam.api.fields.checks import (
    MAX_BIASES,
    MAX_CHOICE_NAME,
    MAX_STOP,
    MAX_STOPS,
    MAX_TEMPLATE_NAME,
    MAX_TEMPLATE_NUMBER,
    MAX_TEMPLATE_TEXT,
    MAX_TEMPLATE_VALUES,
    PROTECTED_TEMPLATE_NAMES,
    TOKEN_DIGITS,
)
from amalgam.api.fields.constraints import MAX_CHOICE, MAX_ENUM, MAX_REGEX_CHARACTERS
from amalgam.api.fields.contents import MAX_TOOL_NAME, MAX_TOOLS
from amalgam.api.fields.message_shapes import Shape

JsonSchema = Annotated[
    bool | dict[str, Any],
    Field(
        description="a JSON schema of bounded size: 4,096 nodes, 256 properties, 1,024 enum values, 64 branches, 16 "
        "strings with a length or a pattern; a $ref points into the schema itself"
    ),
]
ShownSchema = Annotated[
    dict[str, Any],
    Field(
        description="a JSON schema of at most 4,096 nodes and 65,536 characters; of a tool that the answer is "
        "constrained to, bounded as such schemas are"
    ),
]
AnyObject = Annotated[dict[str, Any], Field(description="nested at most 32 deep")]


class NamedShape(Shape):
    """What is wanted, by its kind and name."""

    type: str | None = None
    name: str | None = None


_Other = str | float | bool | list[Any] | None


class ChoiceShape(NamedShape):
    """A choice that says more than a name; nested at most 32 deep."""

    function: NamedShape | _Other = None
    custom: NamedShape | _Other = None


Choice = Annotated[str, Field(max_length=MAX_CHOICE_NAME)] | ChoiceShape
"""It is a name of what is wanted, or an object that says more."""


# --- tools


class FunctionShape(Shape):
    """A function that the client runs, by the schema of its arguments."""

    name: Annotated[str, Field(max_length=MAX_TOOL_NAME)]
    parameters: ShownSchema | None = None
    input_schema: ShownSchema | None = None


class FunctionTool(Shape):
    """A function, as chat completions have it."""

    type: Literal["function", "custom"] | None = None
    function: FunctionShape


class FlatTool(FunctionShape):
    """A function, as the Responses dialect and Anthropic's have it."""

    model_config = ConfigDict(json_schema_extra={"not": {"required": ["function"]}})

    type: Literal["function", "custom"] | None = None


class OtherTool(Shape):
    """A tool that would have to run on this server: left out, and named in the header ``x-amalgam-ignored``."""

    type: Annotated[
        str,
        Field(max_length=MAX_TOOL_NAME, json_schema_extra={"not": {"enum": ["function", "custom", "namespace"]}}),
    ]


class NamespaceTool(Shape):
    """Functions that share the beginning of their names, as the Responses dialect has them."""

    type: Literal["namespace"]
    name: Annotated[str, Field(max_length=MAX_TOOL_NAME)]
    tools: Annotated[list[FunctionTool | FlatTool | OtherTool], Field(max_length=MAX_TOOLS)]


Tools = Annotated[list[FunctionTool | FlatTool | NamespaceTool | OtherTool], Field(max_length=MAX_TOOLS)]


# --- what constrains an answer


class TextFormat(Shape):
    """No constraint."""

    type: Literal["text"]


class JsonObjectFormat(Shape):
    """Any JSON object; with a schema, that schema."""

    type: Literal["json_object"]
    wanted: JsonSchema | None = Field(default=None, alias="schema")


class NamedSchema(Shape):
    """A schema with its name."""

    wanted: JsonSchema = Field(alias="schema")


class JsonSchemaFormat(Shape):
    """JSON by a schema, as chat completions have it."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class FlatJsonSchemaFormat(NamedSchema):
    """JSON by a schema, as the Responses dialect has it."""

    model_config = ConfigDict(json_schema_extra={"not": {"required": ["json_schema"]}})

    type: Literal["json_schema"]


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat | FlatJsonSchemaFormat


class TextOptions(Shape):
    """The Responses dialect's ``text``."""

    format: ResponseFormat | None = None


class OutputFormat(Shape):
    """Anthropic's: the schema of the answer."""

    wanted: JsonSchema | None = Field(default=None, alias="schema")


class OutputConfig(Shape):
    """Anthropic's ``output_config``."""

    format: OutputFormat | None = None


class StructuredOutputs(Shape):
    """VLLM's own spelling: one of json, regex, choice, json_object."""

    model_config = ConfigDict(extra="forbid")

    wanted: JsonSchema | None = Field(default=None, alias="json")
    regex: Annotated[str, Field(max_length=MAX_REGEX_CHARACTERS)] | None = None
    choice: (
        Annotated[list[Annotated[str, Field(max_length=MAX_CHOICE)]], Field(min_length=1, max_length=MAX_ENUM)] | None
    ) = None
    json_object: bool | None = None
    disable_any_whitespace: bool | None = None


# --- the rest


class StreamOptions(Shape):
    """OpenAI's and vLLM's switches of a stream; others among them have no effect."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


_Stop = Annotated[str, Field(max_length=MAX_STOP)]
StopList = Annotated[list[_Stop], Field(max_length=MAX_STOPS)]
Stops = _Stop | StopList
Biases = Annotated[
    dict[Annotated[str, Field(pattern=rf"^[0-9]{{1,{TOKEN_DIGITS}}}$")], Annotated[float, Field(ge=-100, le=100)]],
    Field(max_length=MAX_BIASES, json_schema_extra={"additionalProperties": False}),
]
TemplateValues = Annotated[
    dict[
        Annotated[str, Field(max_length=MAX_TEMPLATE_NAME)],
        bool
        | Annotated[float, Field(ge=-MAX_TEMPLATE_NUMBER, le=MAX_TEMPLATE_NUMBER)]
        | Annotated[str, Field(max_length=MAX_TEMPLATE_TEXT)]
        | None,
    ],
    Field(
        max_length=MAX_TEMPLATE_VALUES,
        json_schema_extra={
            "propertyNames": {
                "pattern": r"^[^\W\d]\w*$",
                "maxLength": MAX_TEMPLATE_NAME,
                "not": {"enum": sorted(PROTECTED_TEMPLATE_NAMES)},
            }
        },
    ),
]
