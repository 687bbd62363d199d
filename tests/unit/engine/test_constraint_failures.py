"""What the engine could not compile is the constraint's fault and says so; every other failure stays what it is."""

import pytest

from amalgam.engine.vllm_endpoints import explained
from amalgam.errors.engine import EngineNotReady, EngineRefused


@pytest.mark.parametrize("field", ["response_format", "structured_outputs"])
def test_a_failure_under_a_constraint_names_the_constraint(field: str) -> None:
    told = explained(EngineRefused(500, "Internal server error"), {field: {"regex": "a{1,500}"}})
    assert (told.status, told.param, told.code) == (400, field, "invalid_request")
    assert "simpler" in told.message


def test_other_failures_stay() -> None:
    internal, refused, starting = EngineRefused(500, "x"), EngineRefused(404, "x"), EngineNotReady("restarting")
    assert explained(internal, {"messages": []}) is internal
    assert explained(refused, {"response_format": {}}) is refused
    assert explained(starting, {"response_format": {"type": "json_object"}}) is starting
