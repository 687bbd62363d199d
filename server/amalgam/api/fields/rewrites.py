"""What clients send in other words than vLLM reads: brought into its form once every field has passed its check."""

from typing import Any, Final

from amalgam.api.fields.checks import STREAM_OPTIONS
from amalgam.api.fields.forced_tools import bind_forced
from amalgam.api.fields.plain_chats import (
    anthropic_choice,
    anthropic_tool,
    flat_choice,
    flat_tool,
    plain_choice,
    plain_tool,
)
from amalgam.api.fields.table import shown_name
from amalgam.domain.serving_profile import LEAST_TOP_P
from amalgam.engine.protocol import Endpoint
from amalgam.errors.requests import FieldRefused

_FREE_CHOICES: Final = ("auto", "none")
_TIERS: Final = frozenset({"auto", "default", "flex", "scale", "priority"})
_INCLUDED: Final = frozenset(
    {
        *("code_interpreter_call.outputs", "computer_call_output.output.image_url", "file_search_call.results"),
        *("message.input_image.image_url", "message.output_text.logprobs", "reasoning.encrypted_content"),
    }
)
"""The Responses dialect may ask to have these included, as far as vLLM knows the words; one of them has an effect."""


def rewrite(endpoint: Endpoint, body: dict[str, Any]) -> list[str]:
    """Change ``body`` in place.

    Tools that are no functions would have to run on this server. They are left out, so that the functions beside them
    can be used; a choice that leaves nothing else is refused.

    Returns: names of what was left out, for the header.

    Raises:
        FieldRefused: ``tool_choice`` asks for a tool that is not there.
    """
    left_out: list[str] = []
    _leave_what_asks_for_nothing(body)
    if body.get("top_p") == 0:
        body["top_p"] = LEAST_TOP_P
    _read_json_object_schema(body)
    if isinstance(options := body.get("stream_options"), dict):
        body["stream_options"] = {key: value for key, value in options.items() if key in STREAM_OPTIONS}
    if endpoint == "messages" and (asked := body.pop("output_format", None)) is not None:
        body["output_config"] = {"format": asked} | (body.get("output_config") or {})
    if endpoint == "chat_completions":
        _read_allowed_tools(body)
        if "tool_choice" in body:
            body["tool_choice"] = plain_choice(body["tool_choice"])
    if endpoint == "responses":
        left_out = _known_words(body)
        if isinstance(choice := body.get("tool_choice"), dict | str) and not _names_allowed(choice):
            body["tool_choice"] = flat_choice(choice)
    if endpoint in ("messages", "count_tokens") and "tool_choice" in body:
        body["tool_choice"] = anthropic_choice(body["tool_choice"])
    if "tools" in body:
        left_out += _keep_functions(endpoint, body) + _plain_tools(endpoint, body)
        bind_forced(endpoint, body)
    elif endpoint == "chat_completions" and body.get("tool_choice") in _FREE_CHOICES:
        # There is nothing to choose from, which vLLM would refuse.
        del body["tool_choice"]
    return left_out


def _leave_what_asks_for_nothing(body: dict[str, Any]) -> None:
    """Take out values that are as none, and that vLLM refuses beside others, or where nothing could heed them."""
    for name in ("suffix", "structured_outputs", "reasoning_effort"):
        if name in body and not body[name]:
            del body[name]
    for name in ("stop", "stop_sequences", "bad_words"):
        said = body.get(name)
        if said == "":
            del body[name]
        elif isinstance(said, list) and "" in said:
            body[name] = [one for one in said if one]
    if body.get("top_logprobs") == 0 and not body.get("logprobs"):
        del body["top_logprobs"]
    options = body.get("stream_options")
    if isinstance(options, dict) and not body.get("stream") and not any(options.values()):
        del body["stream_options"]


def _known_words(body: dict[str, Any]) -> list[str]:
    """The Responses dialect's words for what is done elsewhere: those that vLLM does not know go, and are named."""
    left_out = []
    if (tier := body.get("service_tier")) is not None and tier not in _TIERS:
        del body["service_tier"]
        left_out.append("service_tier")
    if (asked := body.get("include")) is not None:
        body["include"] = [one for one in asked if one in _INCLUDED]
        left_out += [f"include.{one}" for one in asked if one not in _INCLUDED]
    return left_out


def _names_allowed(choice: Any) -> bool:
    return isinstance(choice, dict) and choice.get("type") == "allowed_tools"


def is_function(endpoint: Endpoint, tool: dict[str, Any]) -> bool:
    """Whether the client runs ``tool`` itself, with arguments by a schema."""
    kind = tool.get("type")
    if endpoint in ("messages", "count_tokens"):
        # Anthropic's own tools are functions where the client runs them, but only its models know their arguments.
        return kind in (None, "custom", "function")
    if endpoint == "responses":
        return kind in (None, "function", "custom", "namespace")
    return kind in (None, "function") or (kind == "custom" and "input_schema" in tool)


def _keep_functions(endpoint: Endpoint, body: dict[str, Any]) -> list[str]:
    kept = [tool for tool in body["tools"] if is_function(endpoint, tool)]
    kinds = sorted({str(tool["type"]) for tool in body["tools"] if not is_function(endpoint, tool)})
    choice = body.get("tool_choice")
    wanted = choice.get("type") if isinstance(choice, dict) else choice
    if kinds and wanted not in (None, "function", *_FREE_CHOICES) and (not kept or wanted in kinds):
        shown = ", ".join(map(shown_name, kinds[:4]))
        raise FieldRefused("tool_choice", f"asks for tools that this server does not run ({shown}); send functions")
    if kept:
        body["tools"] = kept
    else:
        del body["tools"]
        if wanted in (None, *_FREE_CHOICES):
            body.pop("tool_choice", None)
    return [f"tools.{kind}" for kind in kinds]


def _plain_tools(endpoint: Endpoint, body: dict[str, Any]) -> list[str]:
    """Functions in the dialect's own form.

    Of the Responses dialect: namespaces without what vLLM would pass over, and tools of free text whose grammar the
    model is told in words.
    """
    left_out: set[str] = set()
    if endpoint in ("chat_completions", "tokenize") and "tools" in body:
        body["tools"] = [plain_tool(tool) for tool in body["tools"]]
    if endpoint in ("messages", "count_tokens") and "tools" in body:
        body["tools"] = [anthropic_tool(tool) for tool in body["tools"]]
    if endpoint == "responses" and "tools" in body:
        plain = [_plain_tool(tool, left_out) for tool in body["tools"]]
        body["tools"] = [tool for tool in plain if tool is not None]
        if not body["tools"]:
            del body["tools"]
    return sorted(left_out)


def _plain_tool(tool: dict[str, Any], left_out: set[str]) -> dict[str, Any] | None:
    if tool.get("type") == "namespace":
        functions = [one for one in tool["tools"] if one.get("type") == "function"]
        left_out |= {f"tools.namespace.{one.get('type')}" for one in tool["tools"] if one.get("type") != "function"}
        described = {**tool, "description": tool.get("description") or "", "tools": functions}
        return described if functions else None
    if tool.get("type") != "custom" or "input_schema" in tool:
        return flat_tool(tool)
    given = tool.get("format")
    if not isinstance(given, dict) or given.get("type") != "grammar":
        return tool
    left_out.add("tools.custom.format")
    told = f"Its input follows this grammar ({given.get('syntax')}):\n{given.get('definition')}"
    rest = {key: value for key, value in tool.items() if key != "format"}
    return {**rest, "description": f"{tool.get('description') or ''}\n\n{told}".strip()}


def _read_json_object_schema(body: dict[str, Any]) -> None:
    """``{"type": "json_object", "schema": …}``, as llama.cpp's server reads it, asks for that schema."""
    asked = body.get("response_format")
    if isinstance(asked, dict) and asked.get("type") == "json_object" and asked.get("schema") is not None:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": asked["schema"]}}


def _read_allowed_tools(body: dict[str, Any]) -> None:
    """``{"type": "allowed_tools", …}``, which vLLM reads in the Responses dialect alone: those tools, and the mode."""
    choice = body.get("tool_choice")
    if not isinstance(choice, dict) or choice.get("type") != "allowed_tools":
        return
    allowed = choice.get("allowed_tools")
    allowed = allowed if isinstance(allowed, dict) else choice
    named, mode = allowed.get("tools"), allowed.get("mode")
    if mode not in ("auto", "required") or not isinstance(named, list):
        raise FieldRefused("tool_choice", "allowed_tools needs a mode, auto or required, and a list of tools")
    names = {_name_of(tool) for tool in named}
    body["tools"] = [tool for tool in body.get("tools", ()) if _name_of(tool) in names]
    if not body["tools"]:
        raise FieldRefused("tool_choice", "allows none of the tools; name one of tools")
    body["tool_choice"] = mode


def _name_of(tool: Any) -> str | None:
    inner = tool.get("function", tool) if isinstance(tool, dict) else None
    name = inner.get("name") if isinstance(inner, dict) else None
    return name if isinstance(name, str) else None
