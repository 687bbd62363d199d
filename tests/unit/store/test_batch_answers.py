"""Answers of a batch over several runs: each line counts once, torn lines not at all, in the order of the lines."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from amalgam.domain.batch import Tally
from amalgam.store.batch_answers import BatchRuns


def texts(lines: object) -> list[dict[str, int]]:
    return [json.loads(one) for one in lines]  # type: ignore[attr-defined]


def test_a_server_that_was_taken_for_dead_disturbs_nobody(tmp_path: Path) -> None:
    runs = BatchRuns.open(tmp_path)
    with runs.begin("batch_1", 1) as dead:
        dead.add(1, b'{"run":1}', is_answered=True)
        with runs.begin("batch_1", 2) as alive:
            assert 1 in alive
            dead.add(2, b'{"run":1}', is_answered=True)
            alive.add(2, b'{"run":2}', is_answered=False)
            alive.add(3, b'{"run":2}', is_answered=True)
            assert texts(alive.lines(answered=True)) == [{"run": 1}, {"run": 2}]
            assert texts(alive.lines(answered=False)) == [{"run": 2}]
        with runs.begin("batch_1", 3) as last:
            assert last.tally == Tally(3, 3, 0)
            assert texts(last.lines(answered=True)) == [{"run": 1}, {"run": 1}, {"run": 2}]


@given(
    st.lists(st.lists(st.tuples(st.integers(1, 20), st.booleans()), max_size=8), min_size=1, max_size=5),
    st.lists(st.integers(0, 40), min_size=5, max_size=5),
)
def test_whatever_is_torn_every_whole_line_counts_once(
    tmp_path_factory: object, written: list[list[tuple[int, bool]]], cuts: list[int]
) -> None:
    root: Path = tmp_path_factory.mktemp("runs")  # type: ignore[attr-defined]
    runs, expected = BatchRuns.open(root), dict[int, bool]()
    for run, (lines, cut) in enumerate(zip(written, cuts, strict=False), 1):
        with runs.begin("b", run) as answers:
            before = set(expected)
            for line, is_answered in lines:
                answers.add(line, json.dumps({"line": line}).encode(), is_answered=is_answered)
        path = root / "batches" / "b" / f"{run}.jsonl"
        whole = path.read_bytes()
        kept = whole[: max(0, len(whole) - cut)]
        path.write_bytes(kept)
        for text in kept.splitlines(keepends=True):
            if text.endswith(b"\n"):
                number, sign, _ = text.split(b" ", 2)
                assert int(number) not in before
                expected.setdefault(int(number), sign == b"+")
    with runs.begin("b", 99) as found:
        for answered in (True, False):
            lines_found = [one["line"] for one in texts(found.lines(answered=answered))]
            assert lines_found == sorted(line for line, sign in expected.items() if sign is answered)
        completed = sum(expected.values())
        assert found.tally == Tally(len(expected), completed, len(expected) - completed)
    runs.remove("b")
    assert list((root / "batches").iterdir()) == []
