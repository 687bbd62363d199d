"""Where the server is, as the test that runs this folder says; and what the demo model may fail."""

import os
from typing import Final

import pytest

LONG: Final = (
    "the demo model does not come to the end of the object within the limit of tokens: it repeats one sentence in a "
    "text, or opens one object in the other where any may come; what it says is valid as far as it goes"
)
CHOICE: Final = "the demo model does not choose a tool by itself: it answers in words, and nothing forces a call"
MAY_FAIL: Final = {
    "test_structured_output_optional_param": LONG,
    "test_json_mode": LONG,
    "test_agent_loop": CHOICE,
}
"""Of langchain's standard tests, by name: the capability of a model that each needs."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name = getattr(item, "originalname", item.name)
        if item.path.name.startswith("suite_langchain") and name in MAY_FAIL:
            item.add_marker(pytest.mark.xfail(reason=MAY_FAIL[name]))


@pytest.fixture(scope="session")
def url() -> str:
    return f"{os.environ['AMALGAM_TEST_URL']}/v1"


@pytest.fixture(scope="session")
def key() -> str:
    return os.environ["AMALGAM_TEST_KEY"]
