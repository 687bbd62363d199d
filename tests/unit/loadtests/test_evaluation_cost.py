from loadtests.evaluation_cost import Phases, rows_of


def test_rows_compare_phases_with_and_without_an_evaluation() -> None:
    found = Phases(busy=[[10.0] * 98 + [40.0, 60.0]] * 2, idle=[[10.0] * 100] * 2, calls=[4, 6])
    rows = {row.case: row for row in rows_of("gate open", found, 20.0)}
    assert len(rows) == 4
    assert rows["gate open: time between tokens, median"].ratio == 1
    assert rows["gate open: time between tokens, longest"].ratio == 6
    tokens = rows["gate open: tokens of the stream"]
    assert tokens.ratio == (100 / 1.08) / 100
    assert tokens.extra["calls of the evaluation"] == "0.25 /s"


def test_a_rate_is_of_the_time_that_the_gaps_took() -> None:
    found = Phases(busy=[[20.0, 30.0]], idle=[[10.0, 10.0]], calls=[1])
    (tokens,) = (row for row in rows_of("gate", found, 1.0) if row.unit == "tokens/s")
    assert tokens.ours == [40]
    assert tokens.theirs == [100]
