"""Tools that a conversation changes, in any dialect's form, with a name or without one."""

from amalgam.api.fields.by_endpoint import check_fields
from tests.unit.api.test_past_turns import FUNCTION, asked, turns


def test_tools_of_another_dialect_and_without_a_name_are_kept_when_a_conversation_changes_them() -> None:
    of_chats = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in "ab"]
    removed = {"type": "tool_removal", "tool": {"type": "tool_reference", "name": "a"}}
    body = check_fields("messages", turns(removed, role="system") | {"tools": of_chats}).body
    assert [tool["name"] for tool in body["tools"]] == ["b"]
    given = [{"type": "web_search"}, {"type": "file_search"}]
    checked = check_fields("responses", asked({"type": "additional_tools", "tools": given}, tools=[FUNCTION]))
    assert checked.ignored == ["tools.file_search", "tools.web_search"]
    again = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    body = check_fields("responses", asked({"type": "additional_tools", "tools": [FUNCTION]}, tools=[again])).body
    assert [tool["name"] for tool in body["tools"]] == ["look"]
