"""langchain's own standard tests of chat models, through langchain-openai."""

import os
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestChatOpenAI(ChatModelIntegrationTests):  # type: ignore[misc]
    """Those that this model may fail are in conftest.py, each with its reason."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        found: type[BaseChatModel] = ChatOpenAI
        return found

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": "smollm2",
            "base_url": f"{os.environ['AMALGAM_TEST_URL']}/v1",
            "api_key": os.environ["AMALGAM_TEST_KEY"],
            "temperature": 0,
            "max_tokens": 96,
            "max_retries": 0,
            "timeout": 120,
            "stream_usage": True,
        }

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "sql"
