from typing import Any

from loadtests.bench_client import Load, Record, records_of

LOAD = Load(requests=4, concurrency=2, input_tokens=8, output_tokens=3, models=("a", "b", "c"), seed=0)


def test_records_know_whose_they_are_and_leave_failures_out() -> None:
    result: dict[str, list[Any]] = {
        "ttfts": [0.1, 0.2, 0.0, 0.4],
        "latencies": [0.5, 0.6, 0.0, 0.8],
        "output_lens": [3, 3, 0, 2],
        "errors": ["", "", "refused", ""],
    }
    assert records_of(LOAD, result) == (
        Record("a", 100.0, 500.0, 3),
        Record("b", 200.0, 600.0, 3),
        Record("a", 400.0, 800.0, 2),
    )
