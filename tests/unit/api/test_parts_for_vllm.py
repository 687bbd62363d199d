"""What the checks of messages let through, vLLM reads whole: its request classes, its dialects and its chats' parser.

Nothing of an engine runs: a chat is followed up to what its template is given.
"""

import copy
import json
from types import SimpleNamespace
from typing import Any, Final, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amalgam.api.fields.by_endpoint import check_fields
from amalgam.api.fields.media import MediaBounds
from amalgam.api.fields.parts import BLOCKS_BY_ROLE, IN_CHATS, IN_ITEMS, IN_REASONING, IN_RESULTS, IN_SAID_ITEMS
from amalgam.api.fields.past_blocks import BLOCKS
from amalgam.engine.protocol import Endpoint
from amalgam.errors.requests import FieldRefused

HI: Final = {"role": "user", "content": "Hi"}
SEES: Final = MediaBounds(frozenset({"image", "audio"}))
PNG: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SOURCE: Final = {"type": "base64", "media_type": "image/png", "data": PNG}
NOT_SERVED: Final = {"image_embeds", "audio_embeds", "video_embeds", "prompt_embeds", "image_pil", "video_url"}
"""What vLLM's chats read beside: tensors that a client made, and films."""
USE: Final = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"city": "Oslo"}}
RESULT: Final = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "Rain."}]}
CALL: Final = {"id": "toolu_1", "type": "function", "function": {"name": "look", "arguments": '{"city": "Oslo"}'}}


@pytest.fixture(scope="module")
def table() -> Any:
    from amalgam.engine.vllm_endpoints import endpoint_table

    return endpoint_table()


def messages_of(table: Any, endpoint: Endpoint, body: dict[str, Any]) -> list[Any]:
    """The messages that vLLM makes of a checked body, for its renderer."""
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
    from vllm.entrypoints.openai.responses.utils import construct_input_messages

    request = table[endpoint].request.validate_python(copy.deepcopy(body))
    if endpoint == "messages":
        request = AnthropicServingMessages.to_chat_completion_request(request)
    if endpoint == "responses":
        return list(construct_input_messages(request_input=request.input))
    return list(request.messages)


def rendered(table: Any, endpoint: Endpoint, body: dict[str, Any], media: MediaBounds = SEES) -> list[list[Any]]:
    """What a template is given, of both kinds of templates."""
    from vllm.renderers.chat_utils import parse_chat_messages

    checked = check_fields(endpoint, {"model": "m"} | body, media=media).body
    model: Any = SimpleNamespace(multimodal_config=None, enable_prompt_embeds=False, allowed_local_media_path="")
    forms: tuple[Any, ...] = ("string", "openai")
    return [parse_chat_messages(messages_of(table, endpoint, checked), model, form)[0] for form in forms]


def body_of(endpoint: Endpoint, *messages: Any) -> dict[str, Any]:
    if endpoint == "responses":
        return {"input": list(messages)}
    return {"messages": list(messages)} | ({"max_tokens": 4} if endpoint == "messages" else {})


def test_the_parts_of_chats_are_those_that_vllm_reads() -> None:
    from vllm.renderers.chat_utils import MM_PARSER_MAP

    assert IN_CHATS.kinds.keys() == MM_PARSER_MAP.keys() - NOT_SERVED


def test_the_blocks_of_messages_are_those_that_vllm_reads() -> None:
    from vllm.entrypoints.anthropic.protocol import AnthropicContentBlock

    read = set(get_args(AnthropicContentBlock.model_fields["type"].annotation))
    ours = {kind for parts in (*BLOCKS_BY_ROLE.values(), IN_RESULTS) for kind in parts.kinds}
    assert read == ours | {"tool_addition", "tool_removal"}, "which change the tools before vLLM sees them"


TEXTS: Final[dict[str, dict[str, Any]]] = {
    "text": {"text": "Told."}, "input_text": {"text": "Told."}, "output_text": {"text": "Told."},
    "refusal": {"refusal": "Told."}, "thinking": {"thinking": "Told."}, "tool_reference": {"name": "Told."},
}  # fmt: skip
"""Types of parts of a chat without media, and a part of each."""


@pytest.mark.parametrize("role", ["user", "assistant", "system", "developer", "tool"])
@pytest.mark.parametrize("kind", sorted(TEXTS))
def test_every_part_of_a_chat_reaches_the_template(table: Any, kind: str, role: str) -> None:
    assert IN_CHATS.kinds.keys() - TEXTS.keys() == {"image_url", "input_image", "input_audio", "audio_url"}
    message = {"role": role, "tool_call_id": "c", "content": [{"type": kind} | TEXTS[kind], "And text."]}
    for conversation in rendered(table, "chat_completions", body_of("chat_completions", HI, message)):
        assert "Told." in json.dumps(conversation[-1]), conversation
        assert "And text." in json.dumps(conversation[-1])


@pytest.mark.parametrize("value", [None, 5, [], {}, True], ids=str)
def test_a_part_whose_text_is_none_is_refused_before_vllm_sees_it(value: Any) -> None:
    for kind, fields in TEXTS.items():
        part = {"type": kind} | dict.fromkeys(fields, value)
        with pytest.raises(FieldRefused) as refused:
            check_fields("chat_completions", body_of("chat_completions", {"role": "user", "content": [part]}))
        assert refused.value.param == "messages"
    for kind in ("input_text", "output_text", "refusal", "text"):
        for role in ("user", "assistant"):
            with pytest.raises(FieldRefused):
                check_fields(
                    "responses", body_of("responses", {"role": role, "content": [{"type": kind, "text": value}]})
                )


def test_calls_and_results_in_blocks_are_those_of_a_chat(table: Any) -> None:
    """As a history of Anthropic's comes to the chat route: from Cursor, and from gateways that pass messages on."""
    said = {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm.", "signature": "s"},
                                             {"type": "text", "text": "I look."}, USE]}  # fmt: skip
    given = {"role": "user", "content": [RESULT, {"type": "text", "text": "And Rome?"}]}
    checked = check_fields("chat_completions", body_of("chat_completions", HI, said, given))
    assert checked.ignored == []
    assert checked.body["messages"] == [
        HI,
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "I look."}],
            "tool_calls": [CALL],
            "reasoning": "Hm.",
        },
        {"role": "tool", "tool_call_id": "toolu_1", "content": [{"type": "text", "text": "Rain."}]},
        {"role": "user", "content": [{"type": "text", "text": "And Rome?"}]},
    ]
    for conversation in rendered(table, "chat_completions", body_of("chat_completions", HI, said, given)):
        assert conversation[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Oslo"}
        assert conversation[2]["content"] == "Rain."
    assert "tool_calls" not in said, "the client's own body is not changed"


def test_calls_that_a_message_has_in_both_forms_are_told_once() -> None:
    said = {"role": "assistant", "content": [USE, {**USE, "id": "toolu_2"}], "tool_calls": [CALL]}
    [plain] = check_fields("chat_completions", body_of("chat_completions", said)).body["messages"]
    assert [call["id"] for call in plain["tool_calls"]] == ["toolu_1", "toolu_2"]


@pytest.mark.parametrize(("content", "told"), [
    ("Rain.", "Rain."), (None, ""), ([], ""), (["Rain."], [{"type": "text", "text": "Rain."}]),
    ([{"type": "document", "source": {"type": "text", "data": "Rain."}}], [{"type": "text", "text": "Rain."}]),
    ([{"type": "tool_reference", "tool_name": "look"}], [{"type": "tool_reference", "name": "look"}]),
], ids=str)  # fmt: skip
def test_a_result_becomes_a_message_of_the_tool(content: Any, told: Any) -> None:
    for role in ("user", "tool"):
        message = {"role": role, "content": [{**RESULT, "content": content}]}
        [plain] = check_fields("chat_completions", body_of("chat_completions", message)).body["messages"]
        assert plain == {"role": "tool", "tool_call_id": "toolu_1", "content": told}


def test_pictures_of_anthropics_are_those_of_a_chat() -> None:
    shown = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
    picture = {"type": "image", "source": SOURCE}
    result = {**RESULT, "content": [picture, {"type": "text", "text": "Seen."}]}
    message = {"role": "user", "content": [result, picture]}
    plain = check_fields("chat_completions", body_of("chat_completions", message), media=SEES).body["messages"]
    assert [one["role"] for one in plain] == ["tool", "user", "user"]
    assert plain[0]["content"] == [{"type": "text", "text": "Seen."}]
    assert plain[1]["content"] == plain[2]["content"] == [shown]
    for wrong in ({"type": "url", "url": "file:///etc/passwd"}, {"type": "base64", "data": 5}, None, {}):
        message = {"role": "user", "content": [{"type": "image", "source": wrong}]}
        with pytest.raises(FieldRefused):
            check_fields("chat_completions", body_of("chat_completions", message), media=SEES)


@pytest.mark.parametrize("role", ["user", "assistant"])
@pytest.mark.parametrize("kind", sorted(BLOCKS))
def test_a_block_of_anthropics_is_told_in_a_chat_or_refused(table: Any, kind: str, role: str) -> None:
    fields = {
        "text": "a",
        "thinking": "a",
        "signature": "s",
        "id": "u",
        "tool_use_id": "u",
        "name": "look",
        "input": {},
    }
    block = {"type": kind, **fields, "data": "x", "content": [{"type": "text", "text": "a"}], "source": SOURCE}
    if kind == "document":
        block["source"] = {"type": "text", "data": "a"}
    if kind == "search_result":
        block["source"] = "a"
    body = body_of("chat_completions", HI, {"role": role, "content": [block]}, HI)
    if role == "user" and kind in ("tool_use", "server_tool_use", "mcp_tool_use"):
        with pytest.raises(FieldRefused, match="with the role assistant"):
            check_fields("chat_completions", body)
        return
    checked = check_fields("chat_completions", body, media=SEES)
    named = BLOCKS[kind][0] in ("left out", "heeded") or kind == "redacted_thinking"
    assert checked.ignored == ([f"messages.{kind}"] if named else [])
    messages = messages_of(table, "chat_completions", {"model": "m"} | checked.body)
    assert messages[0]["content"] == messages[-1]["content"] == "Hi"
    contents = [one["content"] for one in checked.body["messages"] if isinstance(one.get("content"), list)]
    assert {part["type"] for content in contents for part in content} <= IN_CHATS.kinds.keys()


@pytest.mark.parametrize(("endpoint", "message", "words"), [
    ("messages", {"role": "tool", "content": "a"}, "roles must be user, assistant, system"),
    ("messages", {"role": "user", "content": None}, "needs content"),
    ("messages", {"role": "user"}, "needs content"),
    ("messages", {"role": "assistant", "content": "a", "tool_calls": [CALL]}, "blocks of type tool_use"),
    ("messages", {"role": "user", "content": [USE]}, "text, image or tool_result"),
    ("messages", {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "image"),
    ("messages", {"role": "system", "content": [RESULT]}, "text where the system speaks"),
    ("messages", {"role": "assistant", "content": [{**USE, "name": None}]}, "needs name"),
    ("messages", {"role": "assistant", "content": [{**USE, "input": "x"}]}, "must be an object"),
    ("messages", {"role": "user", "content": [{**RESULT, "content": [USE]}]}, "in a tool_result"),
    ("responses", {"role": "tool", "tool_call_id": "c", "content": "a"}, "function_call_output"),
    ("responses", {"role": "assistant", "content": "a", "tool_calls": [CALL]}, "function_call"),
    ("responses", {"role": "user", "content": None}, "needs content"),
    ("responses", {"role": "user", "content": [RESULT]}, "outputs as items"),
    ("responses", {"role": "assistant", "content": [USE]}, "calls as items"),
    ("responses", {"type": "function_call", "name": "f", "arguments": "{}"}, "needs call_id"),
    ("responses", {"type": "custom_tool_call", "name": "f", "call_id": "c"}, "needs input"),
    ("chat_completions", {"role": "assistant", "tool_calls": [{"id": "c"}]}, "function with a name"),
    ("chat_completions", {"role": "user", "content": [{"type": "summary_text", "text": "a"}]}, "must be text"),
    ("chat_completions", {"role": "user", "content": [USE]}, "with the role assistant"),
], ids=str)  # fmt: skip
def test_what_vllm_would_pass_over_or_refuse_is_refused_with_what_to_send(
    endpoint: Endpoint, message: Any, words: str
) -> None:
    with pytest.raises(FieldRefused, match=words) as refused:
        check_fields(endpoint, {"model": "m"} | body_of(endpoint, HI, message))
    assert (refused.value.status, refused.value.code) == (400, "invalid_value")


def test_parts_of_a_chat_are_read_in_the_responses_dialect(table: Any) -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "One."}, "Two."]}
    output = {"type": "function_call_output", "call_id": "c", "output": [{"type": "text", "text": "Three."}]}
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": {"a": 1}}
    for conversation in rendered(table, "responses", body_of("responses", message, call, output)):
        said = json.dumps(conversation)
        assert all(word in said for word in ("One.", "Two.", "Three."))
        assert conversation[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    picture: dict[str, Any] = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
    body = body_of("responses", {"role": "user", "content": [picture]})
    checked = check_fields("responses", {"model": "m"} | body, media=SEES).body
    [part] = messages_of(table, "responses", checked)[0]["content"]
    assert part["image_url"] == picture["image_url"]["url"]


@pytest.mark.parametrize("output", [{"t": 5}, 5, None, True, "5"], ids=str)
def test_an_output_that_is_no_text_is_told_as_one(table: Any, output: Any) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    body = body_of("responses", call, {"type": "function_call_output", "call_id": "c", "output": output})
    for conversation in rendered(table, "responses", body):
        told = "" if output is None else output if isinstance(output, str) else json.dumps(output)
        assert conversation[-1]["content"] == told


WORDS: Final = st.sampled_from(["a", "", "x" * 40, "ä"])
WRONG: Final = st.one_of(WORDS, WORDS, WORDS, st.none(), st.integers(0, 3), st.just([]), st.just({}))
KINDS: Final = sorted({
    *BLOCKS, *TEXTS, "reasoning_text", "summary_text", "input_file", "file", "never",
    *IN_ITEMS.kinds, *IN_SAID_ITEMS.kinds, *IN_REASONING.kinds,
})  # fmt: skip
PART_KEYS: Final = ["text", "refusal", "thinking", "name", "id", "tool_use_id", "input", "data", "signature", "title"]


def parts(inner: bool = True) -> st.SearchStrategy[Any]:
    fields: dict[str, Any] = dict.fromkeys(PART_KEYS, WRONG)
    fields["source"] = st.sampled_from([None, {"type": "text", "data": "a"}, {"type": "content", "content": ["a"]}])
    fields["content"] = st.lists(parts(False), max_size=2) | WRONG if inner else WRONG
    return WORDS | st.fixed_dictionaries({"type": st.sampled_from(KINDS)}, optional=fields)


def conversations(endpoint: Endpoint) -> st.SearchStrategy[Any]:
    calls = st.fixed_dictionaries(
        {},
        optional={
            "id": WRONG,
            "type": st.sampled_from(["function", "custom", None, 5]),
            "function": st.fixed_dictionaries({}, optional={"name": WRONG, "arguments": WRONG}) | WRONG,
            "custom": st.fixed_dictionaries({}, optional={"name": WRONG, "input": WRONG}),
        },
    )
    usual = ["user", "assistant", "system"] * 3
    message = st.fixed_dictionaries(
        {
            "role": st.sampled_from([*usual, "tool", "developer", "function", "x"]),
            "content": WORDS | st.lists(parts(), max_size=2) | WRONG,
        },
        optional={
            "name": WRONG,
            "tool_call_id": WRONG,
            "tool_calls": st.lists(calls, max_size=2) | WRONG,
            "function_call": st.fixed_dictionaries({}, optional={"name": WRONG, "arguments": WRONG}) | WRONG,
            "reasoning_content": WRONG,
            "reasoning": WRONG,
            "refusal": WRONG,
        },
    )
    if endpoint != "responses":
        return st.lists(message, min_size=1, max_size=2)
    item = st.fixed_dictionaries(
        {"type": st.sampled_from(["function_call", "function_call_output", "reasoning", "custom_tool_call",
                                  "custom_tool_call_output", "message", "never"])},
        optional={
            **dict.fromkeys(("call_id", "name", "arguments", "input", "id", "status", "encrypted_content"), WRONG),
            **{key: WRONG | st.lists(parts(False), max_size=2) for key in ("output", "summary", "content")},
            "role": st.sampled_from(["user", "assistant", "system"]),
        },
    )  # fmt: skip
    return st.lists(message | item, min_size=1, max_size=2)


@pytest.mark.parametrize("endpoint", ["chat_completions", "messages", "responses"])
def test_any_conversation_that_passes_the_checks_is_read_by_vllm(table: Any, endpoint: Endpoint) -> None:
    passed = 0

    @settings(max_examples=400, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(conversation=conversations(endpoint))
    def attack(conversation: list[Any]) -> None:
        nonlocal passed
        try:
            rendered(table, endpoint, body_of(endpoint, *conversation), MediaBounds())
        except FieldRefused:
            return
        passed += 1

    attack()
    assert passed > 30


SCHEMA: Final = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS: Final[dict[str, dict[str, Any]]] = {
    "a chat's": {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": SCHEMA}},
    "Responses'": {"type": "function", "name": "look", "description": "Looks.", "parameters": SCHEMA},
    "Anthropic's": {"name": "look", "description": "Looks.", "input_schema": SCHEMA},
    "Anthropic's, with its type": {"type": "custom", "name": "look", "description": "Looks.", "input_schema": SCHEMA},
    "without a schema": {"type": "function", "function": {"name": "look", "description": "Looks."}},
    "with a null": {"type": "function", "name": "look", "description": "Looks.", "parameters": None},
}
CHOICES: Final[dict[str, tuple[Any, ...]]] = {
    "auto": ("auto", {"type": "auto"}),
    "none": ("none", {"type": "none"}),
    "any": ("required", "any", {"type": "any"}),
    "look": ({"type": "tool", "name": "look"}, {"type": "function", "name": "look"},
             {"type": "function", "function": {"name": "look"}}),
}  # fmt: skip
"""What is meant -> how the dialects say it."""


@pytest.mark.parametrize("meant", CHOICES)
@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("endpoint", ["chat_completions", "messages", "responses"])
def test_tools_and_choices_of_any_dialect_are_read_in_every_other(
    table: Any, endpoint: Endpoint, tool: str, meant: str
) -> None:
    for choice in CHOICES[meant]:
        asked = {"model": "m", "tools": [TOOLS[tool]], "tool_choice": choice} | body_of(endpoint, HI)
        request = table[endpoint].request.validate_python(check_fields(endpoint, asked).body)
        [read] = request.tools
        function = getattr(read, "function", read)
        assert (function.name, function.description) == ("look", "Looks.")
        said = request.tool_choice
        named = getattr(getattr(said, "function", said), "name", None)
        word = said if isinstance(said, str) else getattr(said, "type", None)
        found = named or {"required": "any"}.get(str(word), word)
        assert found == meant, (choice, said)


ELSEWHERE: Final[tuple[tuple[Endpoint, str, Any, str], ...]] = (
    ("responses", "max_tokens", 5, "max_output_tokens"), ("responses", "max_completion_tokens", 5, "max_output_tokens"),
    ("responses", "response_format", {"type": "json_object"}, "text.format"),
    ("messages", "stop", ["a"], "stop_sequences"),
    ("messages", "response_format", {"type": "json_object"}, "output_config.format"),
    ("chat_completions", "max_output_tokens", 5, "max_completion_tokens"),
    ("chat_completions", "stop_sequences", ["a"], "stop"),
    ("chat_completions", "system", "Be brief.", "role system"),
    ("chat_completions", "instructions", "Be brief.", "role system"),
    ("chat_completions", "extra_body", {"top_k": 1}, "beside the others"),
)  # fmt: skip


@pytest.mark.parametrize(("endpoint", "field", "value", "step"), ELSEWHERE)
def test_a_field_of_another_dialect_that_would_change_the_answer_is_refused_with_its_name_here(
    endpoint: Endpoint, field: str, value: Any, step: str
) -> None:
    with pytest.raises(FieldRefused, match=f"^{field}: .*send.*{step}"):
        check_fields(endpoint, {"model": "m", field: value} | body_of(endpoint, HI))
    nothings: tuple[Any, ...] = (None, [], {}, "")
    for nothing in nothings:
        check_fields(endpoint, {"model": "m", field: nothing} | body_of(endpoint, HI))
