"""Conversations in which other services' tools were used: what becomes of each part, and that vLLM reads it."""

import collections.abc
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, Literal, NotRequired, Required, Union, get_args, get_origin, get_type_hints

import pytest
from anthropic.types import content_block_param, tool_union_param
from anthropic.types.beta import beta_content_block_param, beta_tool_union_param
from openai.types.responses import response_input_item_param, tool_param
from typing_extensions import is_typeddict

from amalgam.api.fields.by_endpoint import check_fields
from amalgam.api.fields.past_blocks import BLOCKS
from amalgam.api.fields.past_items import ITEMS
from amalgam.errors.requests import FieldRefused

HI = {"role": "user", "content": "Hi"}
ASK = {"type": "message", "role": "user", "content": "And now?"}
OF_THE_MODEL = {"tool_use", "server_tool_use", "mcp_tool_use", "thinking", "redacted_thinking"}
"""What no user says: vLLM would pass over it."""
OF_MEDIA = {"image"}
"""Its bytes are checked, which no made-up value passes."""


def members(union: Any) -> Iterator[Any]:
    """The shapes of a union of unions that have a type."""
    if is_typeddict(union):
        yield union
    for inner in get_args(union):
        yield from members(inner)


def made_up(kind: Any) -> Any:
    """The smallest value of a type of the clients."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Required, NotRequired):
        return made_up(inner[0])
    if origin is Literal:
        return inner[0]
    if origin in (Union, UnionType):
        return made_up(next(one for one in inner if one is not NoneType))
    if is_typeddict(kind):
        hints = get_type_hints(kind, include_extras=True)
        # The clients' modules postpone their annotations, so that the class itself does not know what is required.
        return {key: made_up(hint) for key, hint in hints.items() if get_origin(hint) is Required}
    if origin in (list, collections.abc.Iterable, collections.abc.Sequence) or "Sequence" in str(origin):
        return [made_up(inner[0])]
    if origin is dict or kind is object:
        return {}
    return {str: "x", int: 1, float: 1.0, bool: True}.get(kind, "x")


def types_of(union: Any) -> dict[str, Any]:
    """A made-up value by the type that it says."""
    found: dict[str, Any] = {}
    for shape in members(union):
        value = made_up(shape)
        hint = get_type_hints(shape, include_extras=True).get("type")
        for kind in literals(hint):
            found.setdefault(kind, value | {"type": kind})
    return found


def literals(hint: Any) -> Iterator[str]:
    if get_origin(hint) is Literal:
        yield from get_args(hint)
    else:
        for inner in get_args(hint):
            yield from literals(inner)


ITEMS_OF_OPENAI = types_of(response_input_item_param.ResponseInputItemParam)
BLOCKS_OF_ANTHROPIC = types_of(content_block_param.ContentBlockParam) | types_of(
    beta_content_block_param.BetaContentBlockParam
)


def asked(*items: Any, **more: Any) -> dict[str, Any]:
    return {"model": "m", "input": [*items, ASK]} | more


def told(*items: Any, **more: Any) -> list[Any]:
    """What the engine gets in place of ``items``."""
    input_items: list[Any] = check_fields("responses", asked(*items, **more)).body["input"]
    assert input_items[-1] == ASK
    return input_items[:-1]


def turns(*blocks: Any, role: str = "assistant") -> dict[str, Any]:
    return {"model": "m", "max_tokens": 4, "messages": [HI, {"role": role, "content": list(blocks)}, HI]}


def test_every_item_of_the_newest_client_is_classified() -> None:
    assert len(ITEMS_OF_OPENAI) > 20
    new = ITEMS_OF_OPENAI.keys() - ITEMS.keys()
    assert not new, f"say in the table what becomes of {sorted(new)}"


def test_every_block_of_the_newest_client_is_classified() -> None:
    assert len(BLOCKS_OF_ANTHROPIC) > 20
    new = BLOCKS_OF_ANTHROPIC.keys() - BLOCKS.keys()
    assert not new, f"say in the table what becomes of {sorted(new)}"


@pytest.fixture(scope="module")
def vllm_request() -> Any:
    from amalgam.engine.vllm_endpoints import endpoint_table

    table = endpoint_table()
    return lambda endpoint, body: table[endpoint].request.validate_python(body)


@pytest.mark.parametrize("kind", sorted(ITEMS))
def test_an_item_becomes_what_vllm_reads_or_is_refused_with_a_next_step(kind: str, vllm_request: Any) -> None:
    from vllm.entrypoints.openai.responses.utils import construct_input_messages

    item = ITEMS_OF_OPENAI.get(kind, {"type": kind}) | ({"results": []} if kind == "file_search_call" else {})
    if ITEMS[kind].rule == "refused":
        with pytest.raises(FieldRefused, match=f"{kind}: .*send"):
            check_fields("responses", asked(item))
        return
    checked = check_fields("responses", asked(item), 49_152, 8192)
    assert (f"input.{kind}" in checked.ignored) == (ITEMS[kind].rule == "left out")
    request = vllm_request("responses", checked.body)
    assert construct_input_messages(request_input=request.input)[-1]["content"] == "And now?"


@pytest.mark.parametrize("role", ["user", "assistant"])
@pytest.mark.parametrize("kind", sorted(BLOCKS.keys() - OF_MEDIA))
def test_a_block_becomes_what_vllm_reads(kind: str, role: str, vllm_request: Any) -> None:
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages

    block = BLOCKS_OF_ANTHROPIC.get(kind, {"type": kind, "tool_name": "x"})
    if kind == "document":
        block = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Told."}}
    for endpoint in ("messages", "count_tokens"):
        body = turns(block, role=role)
        if kind == "tool_reference" or (role == "user" and kind in OF_THE_MODEL):
            with pytest.raises(FieldRefused, match="content must be text, or blocks of type"):
                check_fields(endpoint, body)
            continue
        if endpoint == "count_tokens":
            del body["max_tokens"]
        checked = check_fields(endpoint, body, 49_152, 8192)
        assert (f"messages.{kind}" in checked.ignored) == (BLOCKS[kind][0] == "left out")
        request = vllm_request(endpoint, checked.body)
        chat = AnthropicServingMessages.to_chat_completion_request(request)
        assert chat.messages[0]["content"] == chat.messages[-1]["content"] == "Hi"


def test_calls_of_a_client_are_told_with_their_outputs() -> None:
    shell = {"type": "local_shell_call", "id": "ls_1", "call_id": "c1", "status": "completed"}
    action = {"type": "exec", "command": ["ls"], "env": {}}
    items = told(
        {**shell, "action": action},
        {"type": "local_shell_call_output", "id": "c1", "output": "README.md"},
        {"type": "apply_patch_call", "call_id": "c2", "status": "completed", "operation": {"type": "delete_file"}},
        {"type": "apply_patch_call_output", "call_id": "c2", "status": "failed"},
        {"type": "shell_call_output", "call_id": "c3", "output": [{"stdout": "Größe", "stderr": ""}]},
    )
    assert [(item["type"], item["call_id"]) for item in items] == [
        ("function_call", "c1"), ("function_call_output", "c1"),
        ("function_call", "c2"), ("function_call_output", "c2"), ("function_call_output", "c3"),
    ]  # fmt: skip
    assert items[0]["name"] == "local_shell"
    assert '"command": ["ls"]' in items[0]["arguments"]
    assert [items[1]["output"], items[3]["output"]] == ["README.md", "failed"]
    assert "Größe" in items[4]["output"]


def test_what_another_service_ran_is_told_with_what_came_of_it() -> None:
    mcp = {"type": "mcp_call", "id": "m1", "server_label": "docs", "name": "find", "arguments": '{"q":"x"}'}
    call, output = told({**mcp, "output": "Found."})
    assert (call["name"], call["arguments"], output["output"]) == ("docs__find", '{"q":"x"}', "Found.")
    logs = [{"type": "logs", "logs": "4"}, {"type": "image", "url": "data:image/png;base64,AAAA"}]
    code = {"type": "code_interpreter_call", "id": "k", "container_id": "c", "status": "completed", "code": "2+2"}
    call, output = told({**code, "outputs": logs})
    assert call["arguments"] == '{"code": "2+2"}'
    assert "4" in output["output"]
    assert "AAAA" not in output["output"]


def test_reasoning_is_read_as_far_as_it_can_be() -> None:
    summary = [{"type": "summary_text", "text": "First."}, {"type": "summary_text", "text": "Then."}]
    sent = {"type": "reasoning", "id": "r", "summary": summary, "encrypted_content": "gAAAA"}
    [item] = told(sent)
    assert item["content"] == [{"type": "reasoning_text", "text": "First.\n\nThen."}]
    assert "encrypted_content" not in item
    checked = check_fields("responses", asked({**sent, "summary": []}))
    assert checked.body["input"] == [ASK]
    assert checked.ignored == ["input.reasoning"]
    assert check_fields("responses", asked({"type": "reasoning", "id": "r", "summary": []})).ignored == []


@pytest.mark.parametrize("parts", [
    [{"type": "output_text", "text": "One. "}, {"type": "output_text", "text": "Two."}],
    [{"type": "output_text", "text": "One. "}, {"type": "refusal", "refusal": "Two."}],
    "One. Two.",
], ids=str)  # fmt: skip
def test_all_that_an_assistant_said_is_read(parts: Any, vllm_request: Any) -> None:
    from vllm.entrypoints.openai.responses.utils import construct_input_messages

    message = {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": parts}
    body = check_fields("responses", asked(message)).body
    read = construct_input_messages(request_input=vllm_request("responses", body).input)
    assert read[0] == {"role": "assistant", "content": "One. Two."}
    short = check_fields("responses", asked({"role": "assistant", "content": parts})).body
    read = construct_input_messages(request_input=vllm_request("responses", short).input)
    assert (read[0]["role"], read[0]["content"]) == ("assistant", "One. Two.")
    for empty in ([], [{"type": "refusal", "refusal": "No."}]):
        body = check_fields("responses", asked({**message, "content": empty})).body
        assert len(construct_input_messages(request_input=vllm_request("responses", body).input)) == 2


def test_tools_that_a_conversation_brings_along_are_offered() -> None:
    function = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}
    for kind in ("additional_tools", "tool_search_output"):
        item = {"type": kind, "role": "developer", "tools": [function, {**function, "name": "read"}]}
        body = check_fields("responses", asked(item, tools=[{**function, "name": "read", "strict": True}])).body
        assert [(tool["name"], tool.get("strict")) for tool in body["tools"]] == [("read", True), ("look", None)]
    with pytest.raises(FieldRefused) as refused:
        check_fields(
            "responses", asked({"type": "additional_tools", "role": "developer", "tools": [{"type": "function"}]})
        )
    assert refused.value.param == "tools"


def test_changes_of_settings_in_a_conversation_hold() -> None:
    low = {"type": "configuration_update", "reasoning": {"effort": "low"}}
    body = check_fields(
        "responses", asked(low, {**low, "reasoning": {"effort": "high"}}, reasoning={"summary": "auto"})
    ).body
    assert body["reasoning"] == {"summary": "auto", "effort": "high"}
    assert body["input"] == [ASK]


def test_what_nobody_knows_is_left_out_and_named_or_refused_where_the_operator_wants() -> None:
    new = {"type": "telepathy_call", "id": "t"}
    checked = check_fields("responses", asked(new))
    assert (checked.body["input"], checked.ignored) == ([ASK], ["input.telepathy_call"])
    with pytest.raises(FieldRefused, match="telepathy_call"):
        check_fields("responses", asked(new), refuse_unknown=True)
    checked = check_fields("messages", turns({"type": "text", "text": "So."}, {"type": "telepathy", "id": "t"}))
    assert checked.ignored == ["messages.telepathy"]
    with pytest.raises(FieldRefused, match="telepathy"):
        check_fields("messages", turns({"type": "telepathy"}), refuse_unknown=True)


def test_what_a_user_says_in_words_that_nobody_knows_is_refused() -> None:
    with pytest.raises(FieldRefused, match="content must be text"):
        check_fields("messages", turns({"type": "telepathy"}, role="user"))
    file = {"type": "input_file", "file_data": "data:application/pdf;base64,AAAA"}
    with pytest.raises(FieldRefused, match="content must be text"):
        check_fields("responses", asked({"role": "user", "content": [file]}))


def test_a_conversation_of_which_nothing_is_left_is_refused() -> None:
    with pytest.raises(FieldRefused, match="add a message"):
        check_fields("responses", {"input": [{"type": "web_search_call", "id": "w"}]})
    upload = {"role": "user", "content": [{"type": "container_upload", "file_id": "f"}]}
    with pytest.raises(FieldRefused, match="add a text"):
        check_fields("messages", {"messages": [upload], "max_tokens": 4})


def test_results_of_anthropics_tools_stand_where_a_clients_own_would() -> None:
    found = {"type": "web_search_result", "title": "Oslo", "url": "https://oslo.no", "encrypted_content": "secret"}
    said = check_fields("messages", turns(
        {"type": "text", "text": "I look."},
        {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "Oslo"}},
        {"type": "web_search_tool_result", "tool_use_id": "s1", "content": [found]},
        {"type": "text", "text": "It is a city."},
        {"type": "mcp_tool_use", "id": "s2", "name": "find", "server_name": "docs", "input": {}},
        {"type": "mcp_tool_result", "tool_use_id": "s2", "content": [{"type": "text", "text": "Found."}]},
    )).body["messages"][1:-1]  # fmt: skip
    assert [message["role"] for message in said] == ["assistant", "user", "assistant", "user"]
    assert [block["type"] for block in said[0]["content"]] == ["text", "tool_use"]
    [result] = said[1]["content"]
    assert result["tool_use_id"] == "s1"
    assert "https://oslo.no" in result["content"]
    assert "secret" not in result["content"]
    assert said[2]["content"][1]["name"] == "docs__find"
    assert said[3]["content"][0]["content"] == "Found."


def test_documents_are_read_as_text_wherever_they_are() -> None:
    text = {"type": "document", "title": "Plan", "source": {"type": "text", "media_type": "text/plain", "data": "Go."}}
    parts = {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "Stop."}]}}
    search = {"type": "search_result", "title": "T", "source": "S", "content": [{"type": "text", "text": "C"}]}
    for blocks in (
        [text, parts, search],
        [{"type": "tool_result", "tool_use_id": "u", "content": [text, parts, search]}],
    ):
        content = check_fields("messages", turns(*blocks, role="user")).body["messages"][1]["content"]
        content = content[0]["content"] if content[0]["type"] == "tool_result" else content
        assert [part["text"] for part in content] == ["Plan\nGo.", "Stop.", "T\nS\nC"]
    for source in (
        {"type": "base64", "media_type": "application/pdf", "data": "AA"},
        {"type": "url", "url": "x"},
        None,
    ):
        with pytest.raises(FieldRefused, match="send what is written"):
            check_fields("messages", turns({"type": "document", "source": source}, role="user"))


def test_a_picture_in_a_document_is_checked_as_pictures_are() -> None:
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    document = {"type": "document", "source": {"type": "content", "content": [picture]}}
    with pytest.raises(FieldRefused, match="reads no image"):
        check_fields("messages", turns(document, role="user"))
    shot = {"type": "computer_call_output", "call_id": "c", "output": {"image_url": "data:image/png;base64,AAAA"}}
    with pytest.raises(FieldRefused, match="reads no image"):
        check_fields("responses", asked(shot))


def test_tools_are_those_of_the_conversations_end() -> None:
    tools = [{"name": name, "input_schema": {"type": "object"}} for name in ("a", "b")]
    new = {"type": "tool_definition", "definition": {"name": "c", "input_schema": {"type": "object"}}}
    blocks = [
        {"type": "tool_removal", "tool": {"type": "tool_reference", "name": "a"}},
        {"type": "tool_addition", "tool": new},
        {"type": "tool_addition", "tool": {"type": "tool_reference", "name": "never"}},
    ]
    body = check_fields("messages", turns(*blocks, role="system") | {"tools": tools}).body
    assert [tool["name"] for tool in body["tools"]] == ["b", "c"]
    assert body["messages"] == [HI, HI]
    again = [*blocks, {"type": "tool_addition", "tool": {"type": "tool_reference", "name": "a"}}]
    body = check_fields("messages", turns(*again, role="system") | {"tools": tools}).body
    assert [tool["name"] for tool in body["tools"]] == ["b", "c", "a"]


def test_chats_from_before_there_were_tools_and_calls_of_free_text_are_read() -> None:
    messages: list[dict[str, Any]] = [
        HI,
        {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": "{}"}},
        {"role": "function", "name": "look", "content": "Rain."},
        {"role": "assistant", "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "f", "input": "Größe"}}]},
    ]
    body = check_fields("chat_completions", {"messages": messages}).body
    assert body["messages"][1]["tool_calls"][0]["function"] == {"name": "look", "arguments": "{}"}
    assert body["messages"][2] == {"role": "tool", "tool_call_id": "call_look", "content": "Rain."}
    assert body["messages"][3]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"input": "Größe"}'}
    assert messages[1]["function_call"] == {"name": "look", "arguments": "{}"}, "the client's own body is not changed"


FUNCTION = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}
TOOLS_OF_OPENAI = types_of(tool_param.ToolParam)
TOOLS_OF_ANTHROPIC = types_of(tool_union_param.ToolUnionParam) | types_of(beta_tool_union_param.BetaToolUnionParam)


@pytest.mark.parametrize("kind", sorted(TOOLS_OF_OPENAI))
def test_every_tool_of_openai_is_offered_or_left_out(kind: str, vllm_request: Any) -> None:
    checked = check_fields("responses", asked(tools=[FUNCTION, TOOLS_OF_OPENAI[kind]]), 49_152, 8192)
    kept = kind in ("function", "custom", "namespace")
    assert (f"tools.{kind}" in checked.ignored) != kept
    assert len(vllm_request("responses", checked.body).tools) == 1 + kept


@pytest.mark.parametrize("kind", sorted(TOOLS_OF_ANTHROPIC))
def test_every_tool_of_anthropic_is_offered_or_left_out(kind: str, vllm_request: Any) -> None:
    function = {"name": "look", "input_schema": {"type": "object"}}
    checked = check_fields(
        "messages", turns({"type": "text", "text": "So."}) | {"tools": [function, TOOLS_OF_ANTHROPIC[kind]]}
    )
    assert (f"tools.{kind}" in checked.ignored) != (kind == "custom")
    assert len(vllm_request("messages", checked.body).tools) == 1 + (kind == "custom")


def test_namespaces_are_functions_with_a_common_name(vllm_request: Any) -> None:
    from vllm.tool_parsers.utils import get_function_tools

    inner = [FUNCTION, {"type": "custom", "name": "free"}]
    space = {"type": "namespace", "name": "docs", "tools": inner}
    checked = check_fields("responses", asked(tools=[space], tool_choice="required"))
    request = vllm_request("responses", checked.body)
    assert [(tool.name, tool.strict) for tool in get_function_tools(request.tools)] == [("docs__look", True)]
    assert checked.ignored == ["tools.namespace.custom"]
    assert "tools" not in check_fields("responses", asked(tools=[{**space, "tools": []}])).body
    for wrong in ({**space, "tools": [{"type": "function"}]}, {**space, "tools": [space]}, {**space, "tools": None}):
        with pytest.raises(FieldRefused):
            check_fields("responses", asked(tools=[wrong]))
    many = [{**space, "name": f"n{i}", "tools": [{**FUNCTION, "name": f"f{j}"} for j in range(100)]} for i in range(6)]
    with pytest.raises(FieldRefused, match="namespaces"):
        check_fields("responses", asked(tools=many))


def test_a_tool_of_free_text_keeps_its_grammar_as_words(vllm_request: Any) -> None:
    grammar = {"type": "grammar", "syntax": "lark", "definition": 'start: "*** Begin Patch"'}
    patch = {"type": "custom", "name": "apply_patch", "description": "Edits files.", "format": grammar}
    checked = check_fields("responses", asked(tools=[patch]))
    [tool] = vllm_request("responses", checked.body).tools
    assert tool.description.startswith("Edits files.")
    assert "*** Begin Patch" in tool.description
    assert checked.ignored == ["tools.custom.format"]
