"""langchain's own standard tests of chat models, through langchain-anthropic."""

import os
from typing import Any

from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestChatAnthropic(ChatModelIntegrationTests):  # type: ignore[misc]
    """Those that this model may fail are in conftest.py, each with its reason."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        found: type[BaseChatModel] = ChatAnthropic
        return found

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": "smollm2",
            "base_url": os.environ["AMALGAM_TEST_URL"],
            "api_key": os.environ["AMALGAM_TEST_KEY"],
            "temperature": 0,
            "max_tokens": 96,
            "max_retries": 0,
            "timeout": 120,
        }

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "sql"
