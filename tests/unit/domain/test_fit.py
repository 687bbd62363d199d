"""What a fit came to is told by its method."""

from amalgam.domain.fit import FitRecord


def record(**values: object) -> FitRecord:
    return FitRecord.model_validate(
        {"by": "kept", "prompts_digest": "d", "seed": 0, "max_tokens": 9, "budget_s": 9.0} | values
    )


def test_what_was_read_and_what_was_not() -> None:
    assert record(method="iteris", tokens=321).outcome == "fitted: each input to what it reads, 321 tokens in all"
    unread = record(method="iteris", tokens=321, unread=2).outcome
    assert unread.endswith("2 modules were not read and are summed as they are")


def test_weights_that_were_searched() -> None:
    assert record(weights={"sql@1": 0.5}, tried=12).outcome == "weights: 0.5 of sql@1 (12 tried)"
