"""Arguments of a forced tool that are an object, also where nothing else of the tool's schema binds them.

A tool that is not strict leaves its arguments free, and then vLLM's grammar of a call takes any JSON value: a bare
string or a list, which no client reads, and which a stream has sent before anybody can tell. What may be any value
there is made to be any object.
"""

import functools
from collections.abc import Sequence
from typing import Any, Final

from openai.types.responses import CustomTool, FunctionTool
from pydantic import BaseModel
from vllm.tool_parsers import structural_tag_registry
from vllm.tool_parsers.utils import custom_tool_as_function_dict
from xgrammar.structural_tag import JSONSchemaFormat

from amalgam.engine.cpu import patches

_BUILD: Final = "vllm.tool_parsers.structural_tag_registry:get_model_structural_tag"
ANY_OBJECT: Final = {"type": "object", "additionalProperties": True}


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
    """Change every format in ``node`` that takes any JSON value, in place; forms in XML are objects as they are."""
    if isinstance(node, JSONSchemaFormat):
        if node.json_schema is True and node.style == "json":
            node.json_schema = dict(ANY_OBJECT)
    elif isinstance(node, BaseModel):
        for name in type(node).model_fields:
            _bind(getattr(node, name))
    elif isinstance(node, list | tuple):
        for one in node:
            _bind(one)
