"""The states of a job, and the steps between them."""

from typing import Any

import pytest

from amalgam.domain.job import FINAL_STATES, LIVE_STATES, TRANSITIONS, check_transition
from amalgam.errors.jobs import JobStateConflict


def test_ends_lead_nowhere_and_everything_else_leads_to_an_end() -> None:
    assert set(FINAL_STATES) == {"published", "failed", "cancelled"}
    assert set(LIVE_STATES) | set(FINAL_STATES) == set(TRANSITIONS)
    for state in LIVE_STATES:
        assert "failed" in TRANSITIONS[state]


@pytest.mark.parametrize("current", TRANSITIONS)
@pytest.mark.parametrize("wanted", TRANSITIONS)
def test_only_steps_of_the_table_pass(current: Any, wanted: Any) -> None:
    allowed = {
        ("queued", "running"), ("queued", "cancelled"), ("queued", "failed"),
        ("running", "running"), ("running", "queued"), ("running", "built"), ("running", "failed"),
        ("running", "cancelled"), ("built", "publishing"), ("built", "failed"), ("publishing", "publishing"),
        ("publishing", "built"), ("publishing", "published"), ("publishing", "failed"),
    }  # fmt: skip
    if (current, wanted) in allowed:
        check_transition("j", current, wanted)
    else:
        with pytest.raises(JobStateConflict):
            check_transition("j", current, wanted)
