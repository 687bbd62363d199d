"""Plans cover exactly the rows that have an adapter, each once."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from hypothesis import given
from hypothesis import strategies as st

from amalgam.engine.cpu.plan import FEW_RUNS, GROUP_ROWS, SOLO_ROWS, Groups, RowPlan, plan_rows

SLOTS_OF_ROWS = st.lists(
    st.tuples(st.integers(-1, 6), st.integers(1, 2 * SOLO_ROWS)).map(lambda run: [run[0]] * run[1])
    | st.lists(st.integers(-1, 6), max_size=8),
    max_size=12,
).map(lambda parts: [slot for part in parts for slot in part])


def grouped(groups: Groups | None) -> Iterator[tuple[int, int]]:
    if groups:
        for slot, start, stop in zip(groups.slots, groups.starts[:-1], groups.starts[1:], strict=True):
            yield from ((row, slot) for row in groups.rows[start:stop].tolist())


def pairs(plan: RowPlan) -> Iterator[tuple[int, int]]:
    """(row, slot) of every product the plan asks for."""
    for run in plan.runs:
        yield from ((row, run.slot) for row in range(run.start, run.stop))
    for scatter in plan.scatters:
        yield from ((row, scatter.slot) for row in scatter.rows.tolist())
    for batch in plan.batches:
        width = len(batch.gather) // (batch.stop - batch.first)
        places = range(len(batch.gather)) if batch.kept is None else batch.kept.tolist()
        for place, row in zip(places, batch.rows.tolist(), strict=True):
            assert batch.gather[place] == row
            yield row, batch.first + place // width
    yield from grouped(plan.groups)


@given(SLOTS_OF_ROWS, st.booleans())
def test_every_row_with_an_adapter_is_planned_once(slots: Sequence[int], compiled: bool) -> None:
    plan = plan_rows(torch.tensor(slots, dtype=torch.long), compiled=compiled)
    assert sorted(pairs(plan)) == [(row, slot) for row, slot in enumerate(slots) if slot >= 0]
    assert bool(plan) == any(slot >= 0 for slot in slots)


@given(SLOTS_OF_ROWS)
def test_compiled_loops_get_all_rows_in_groups_that_threads_can_share(slots: Sequence[int]) -> None:
    plan = plan_rows(torch.tensor(slots, dtype=torch.long), compiled=True)
    assert not plan.runs
    assert not plan.scatters
    assert not plan.batches
    if plan.groups:
        sizes = plan.groups.starts[1:] - plan.groups.starts[:-1]
        assert sizes.tolist() == sorted(sizes.tolist(), reverse=True)
        assert ((sizes > 0) & (sizes <= GROUP_ROWS)).all()
        # No more groups than needed: each reads the factors once.
        of_slot = {slot: slots.count(slot) for slot in set(slots) - {-1}}
        assert len(sizes) == sum(-(-rows // GROUP_ROWS) for rows in of_slot.values())


@given(SLOTS_OF_ROWS, st.booleans(), st.sampled_from([1, SOLO_ROWS, 128]))
def test_spans_are_all_rows_in_order_and_what_they_leave_is_in_groups(
    slots: Sequence[int], has_units: bool, span_rows: int
) -> None:
    plan = plan_rows(torch.tensor(slots, dtype=torch.long), compiled=True, has_units=has_units, span_rows=span_rows)
    runs = [(slot, len(list(run))) for slot, run in groupby(slots)]
    assert (plan.spans is not None) == any(slot >= 0 and rows >= span_rows for slot, rows in runs)
    if plan.spans is None:
        assert plan.beside is None
        return
    spans = plan.spans.tolist()
    assert [start for _, start, _ in spans] == [0, *(stop for _, _, stop in spans[:-1])]
    assert spans[-1][2] == len(slots)
    with_adapter = [(row, slot) for slot, start, stop in spans if slot >= 0 for row in range(start, stop)]
    assert all(stop - start >= span_rows for slot, start, stop in spans if slot >= 0)
    assert sorted([*with_adapter, *grouped(plan.beside)]) == [(row, s) for row, s in enumerate(slots) if s >= 0]


@given(SLOTS_OF_ROWS, st.booleans())
def test_rows_by_slot_is_the_same_partition(slots: Sequence[int], compiled: bool) -> None:
    rows_by_slot = plan_rows(torch.tensor(slots, dtype=torch.long), compiled=compiled).rows_by_slot()
    want = {slot: [row for row, s in enumerate(slots) if s == slot] for slot in set(slots) - {-1}}
    assert {slot: rows.tolist() for slot, rows in rows_by_slot.items()} == want


@given(SLOTS_OF_ROWS)
def test_filling_reads_no_row_of_another_slot(slots: Sequence[int]) -> None:
    for batch in plan_rows(torch.tensor(slots, dtype=torch.long)).batches:
        read = torch.tensor(slots)[batch.gather].view(batch.stop - batch.first, -1)
        assert (read == torch.arange(batch.first, batch.stop)[:, None]).all()


def test_decode_of_interleaved_adapters_is_one_batch() -> None:
    plan = plan_rows(torch.tensor([0, 1, 2] * 5 + [0]))
    assert not plan.runs
    assert not plan.scatters
    assert [(batch.first, batch.stop, len(batch.gather)) for batch in plan.batches] == [(0, 3, 18)]


def test_prompts_are_runs() -> None:
    plan = plan_rows(torch.tensor([0] * 512 + [-1] * 512 + [2] * 512 + [0] * 100))
    assert [(run.slot, run.start, run.stop) for run in plan.runs] == [(0, 0, 512), (2, 1024, 1536), (0, 1536, 1636)]
    assert not plan.batches


def test_a_large_group_does_not_pad_the_others() -> None:
    plan = plan_rows(torch.tensor([0, 1, 0, 2] * SOLO_ROWS + [1, 3]))
    assert max((len(b.gather) // (b.stop - b.first) for b in plan.batches), default=0) < SOLO_ROWS


def test_few_runs_need_no_gathering() -> None:
    plan = plan_rows(torch.tensor([3, -1, 1, 1]))
    assert len(plan.runs) == FEW_RUNS
    assert not plan.batches
    assert not plan.scatters
