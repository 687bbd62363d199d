"""What is passed on of a recorded request is what vLLM's own request classes read; no engine is needed to know that."""

from typing import Any

import pytest

from amalgam.api.fields.by_endpoint import check_fields
from amalgam.api.fields.loose_values import plain_values
from amalgam.api.inference.openai import ENDPOINT_PATHS
from tests.clients.recorded_bodies import Recorded, recorded_bodies


@pytest.fixture(scope="module")
def table() -> Any:
    from amalgam.engine.vllm_endpoints import endpoint_table

    return endpoint_table()


@pytest.mark.parametrize("recorded", recorded_bodies(), ids=lambda recorded: recorded.name)
def test_vllms_request_class_takes_what_is_passed_on(table: Any, recorded: Recorded) -> None:
    endpoint = ENDPOINT_PATHS[recorded.path.partition("?")[0]]
    checked = check_fields(endpoint, plain_values(endpoint, recorded.body_for("sql")), 49_152, 8192)
    request = table[endpoint].request.validate_python(checked.body)
    extra = getattr(request, "model_extra", None) or {}
    assert not extra, "vLLM knows every field that it gets"
    tools = checked.body.get("tools", [])
    assert len(request.tools or []) == len(tools) if hasattr(request, "tools") else not tools
