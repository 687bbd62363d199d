"""Names that requests give, while they wait and while they run."""

import pytest

from amalgam.services.asked_names import AskedNames


def told(asked: AskedNames) -> tuple[set[str], set[str]]:
    return set(asked.waiting), set(asked.running)


def test_a_name_waits_then_runs_and_is_gone_with_its_last_request() -> None:
    asked = AskedNames()
    with asked.asking("sql") as runs:
        assert told(asked) == ({"sql"}, set())
        runs()
        with asked.asking("sql"):
            assert told(asked) == ({"sql"}, {"sql"})
        assert told(asked) == (set(), {"sql"})
    assert told(asked) == (set(), set())


def test_a_request_that_fails_is_gone_too() -> None:
    asked = AskedNames()
    with pytest.raises(KeyError), asked.asking("sql"):
        raise KeyError
    assert not asked.waiting
