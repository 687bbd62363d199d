"""A client of vLLM's whose core is lost."""

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from vllm.v1.engine.core_client import AsyncMPClient, BackgroundResources
from vllm.v1.engine.exceptions import EngineDeadError

from amalgam.engine.vllm_client import refuse_all


def test_a_request_on_its_way_to_a_lost_core_is_refused() -> None:
    core = AsyncMPClient.__new__(AsyncMPClient)
    core.resources = BackgroundResources(ctx=None)
    core.ensure_alive()
    told: list[BaseException] = []
    refuse_all(SimpleNamespace(engine_core=core, output_processor=SimpleNamespace(propagate_error=told.append)))
    assert [type(error) for error in told] == [EngineDeadError]
    with pytest.raises(EngineDeadError):
        core.ensure_alive()
