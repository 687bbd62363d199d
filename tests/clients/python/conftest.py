"""Where the server is, as the test that runs this folder says; and what the demo model may fail."""

import os
from typing import Final

import pytest

LOOSE: Final = (
    "the tool is not strict, so its schema does not bind the arguments, and the demo model makes none that fit"
)
LONG: Final = "the demo model does not come to the end of the object within the limit of tokens"
CHOICE: Final = "the demo model does not choose a tool by itself"
MAY_FAIL: Final = {
    "test_tool_calling": LOOSE,
    "test_tool_calling_async": LOOSE,
    "test_bind_runnables_as_tools": LOOSE,
    "test_tool_choice": LOOSE,
    "test_tool_calling_with_no_arguments": LOOSE,
    "test_structured_few_shot_examples": LOOSE,
    "test_structured_output_pydantic_2_v1": LOOSE,
    "test_unicode_tool_call_integration": LOOSE,
    "test_structured_output_optional_param": LONG,
    "test_json_mode": LONG,
    "test_agent_loop": CHOICE,
}
"""Of langchain's standard tests, by name: the capability of a model that each needs."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name = getattr(item, "originalname", item.name)
        if item.path.name == "suite_langchain.py" and name in MAY_FAIL:
            item.add_marker(pytest.mark.xfail(reason=MAY_FAIL[name]))


@pytest.fixture(scope="session")
def url() -> str:
    return f"{os.environ['AMALGAM_TEST_URL']}/v1"


@pytest.fixture(scope="session")
def key() -> str:
    return os.environ["AMALGAM_TEST_KEY"]
