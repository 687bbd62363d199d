"""Arguments of a forced tool that are an object, also where nothing else of the tool's schema binds them.

A tool that is not strict leaves its arguments free, and then vLLM's grammar of a call takes any JSON value: a bare
string or a list, which no client reads, and which a stream has sent before anybody can tell. What may be any value
there is made to be any object. An object that can have no keys is made to be ``{}`` to the letter: between its braces
nothing but blanks could come, of which a small model may write as many as it has tokens.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Final

from openai.types.responses import CustomTool, FunctionTool
from pydantic import BaseModel
from vllm.tool_parsers import structural_tag_registry
from vllm.tool_parsers.utils import custom_tool_as_function_dict
from xgrammar.structural_tag import JSONSchemaFormat

from amalgam.engine.cpu import patches

_BUILD: Final = "vllm.tool_parsers.structural_tag_registry:get_model_structural_tag"
ANY_OBJECT: Final = {"type": "object", "additionalProperties": True}
NO_ARGUMENTS: Final[Mapping[str, Any]] = {"const": {}}
_OF_NO_ARGUMENTS: Final = frozenset({
    "$defs", "$schema", "additionalProperties", "definitions", "description", "properties", "required", "title", "type",
})  # fmt: skip
"""A schema with no other keywords may still allow an object without keys alone."""


def bind_to_objects() -> None:
    """Stand behind vLLM's making of a call's grammar, for every parser that has one; a second time changes nothing."""
    build = structural_tag_registry.get_model_structural_tag
    build = getattr(build, "__wrapped__", build)

    @functools.wraps(build)
    def bound(model: str, tools: Sequence[Any] | None, tool_choice: Any, *rest: Any, **named: Any) -> Any:
        if tool_choice not in (None, "auto", "none"):
            tools = [_strict(tool) for tool in tools or ()]
        tag = build(model, tools, tool_choice, *rest, **named)
        if tag is not None:
            _bind(tag.format)
        return tag

    patches.put(_BUILD, bound)


def _strict(tool: Any) -> Any:
    """A tool of free text is told as a function of one string; nothing else may come where it is forced."""
    if not isinstance(tool, CustomTool):
        return tool
    return FunctionTool.model_validate({**custom_tool_as_function_dict(tool), "strict": True})


def _bind(node: Any) -> None:
    """Change every format in ``node`` that takes any JSON value, or blanks alone, in place; forms in XML stay."""
    if isinstance(node, JSONSchemaFormat):
        if node.style == "json" and node.json_schema is True:
            node.json_schema = dict(ANY_OBJECT)
        elif node.style == "json" and _has_no_arguments(node.json_schema):
            node.json_schema = dict(NO_ARGUMENTS)
    elif isinstance(node, BaseModel):
        for name in type(node).model_fields:
            _bind(getattr(node, name))
    elif isinstance(node, list | tuple):
        for one in node:
            _bind(one)


def _has_no_arguments(schema: Any) -> bool:
    """Whether the constraint of ``schema`` is an object without keys; under it none may come that is not named."""
    return (
        isinstance(schema, Mapping)
        and schema.keys() <= _OF_NO_ARGUMENTS
        and schema.get("type") == "object"
        and schema.get("properties") == {}
        and not schema.get("additionalProperties")
        and not schema.get("required")
    )
