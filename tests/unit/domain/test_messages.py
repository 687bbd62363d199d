"""Messages between the server and its children: each comes back as it was, and nothing else is taken for one."""

import json
from typing import Any, get_args

import pytest

from amalgam.domain.diagnostics import MergeForecast
from amalgam.domain.error_report import ErrorReport
from amalgam.domain.expression import parse_expression
from amalgam.domain.fit_forecast import ReadingNeeds
from amalgam.domain.messages import (
    FROM_BLENDER,
    FROM_TEMPLATES,
    FROM_WORKER,
    TO_BLENDER,
    TO_TEMPLATES,
    TO_WORKER,
    BlendBuilt,
    BlendInput,
    BlendOrder,
    EnergyAnswer,
    EnergyQuestion,
    JobNews,
    JobProgressed,
    Line,
    Message,
    NeedsAnswer,
    NeedsQuestion,
    PlanAnswer,
    PlanQuestion,
    RebuildAnswer,
    RebuildQuestion,
    Refusal,
    Wake,
    WorkerNamed,
    written,
)
from amalgam.domain.template_messages import (
    TemplateCheck,
    TemplateFault,
    TemplateFormat,
    TemplateReady,
    TemplateRender,
    TemplateText,
    packed,
    read_order,
    unpacked,
    written_reply,
)
from amalgam.errors.internal import MessageUnreadable
from amalgam.errors.merging import NonFinite

RECIPE = parse_expression("ties(sql@1, 0.5*json@2; density=0.3)")
FORECAST = MergeForecast(
    is_complete=False,
    modules_seen=0,
    memory_bytes=1,
    compute_s=None,
    energy_kept=0.5,
    overall={"norms": [1.5]},
    modules=(),
)
NEEDS = ReadingNeeds(memory_bytes=9, free_bytes=5, device="cpu", dtype="float32", threads=2)
INPUT = BlendInput(folder="/store/a", digest="a" * 64, base="base")
REFUSAL = Refusal(id=3, error=ErrorReport.of(NonFinite("The result", "q")))
CHECK = TemplateCheck(5, packed("{{ 1 }}"), packed({}))
RENDER = TemplateRender(6, packed("{{ 1 }}"), packed([{"role": "user"}]), packed(None), packed({"a": "ü"}), True)

LINES: list[tuple[Line, Message]] = [
    (TO_WORKER, Wake()),
    (TO_WORKER, PlanQuestion(id=1, recipe=RECIPE, budget_s=2.5)),
    (TO_WORKER, NeedsQuestion(id=8, budget_s=10.0)),
    (TO_WORKER, RebuildQuestion(id=2, recipe=RECIPE, budget_s=600, max_rank=16, reading=None)),
    (TO_WORKER, EnergyQuestion(id=7, adapters=("sql@1", "json@2"), prompts=("a", "ü\n"), budget_s=9)),
    (FROM_WORKER, WorkerNamed(name="host-abc")),
    (FROM_WORKER, JobNews("job-1", "merge", "built", {"sync": 1.0})),
    (FROM_WORKER, JobProgressed(job_id="job-1", attempt=1, done=3, total=14)),
    (FROM_WORKER, PlanAnswer(id=1, forecast=FORECAST)),
    (FROM_WORKER, NeedsAnswer(id=8, needs=NEEDS)),
    (FROM_WORKER, RebuildAnswer(id=2, digest="b" * 64, seconds=0.5)),
    (FROM_WORKER, EnergyAnswer(id=7, energies=((0.25, 0.5), (1e-9, 1.0)))),
    (FROM_WORKER, REFUSAL),
    (TO_BLENDER, BlendOrder(id=4, recipe=RECIPE, inputs={"sql@1": INPUT}, folder="/x", max_rank=16, max_bytes=9)),
    (FROM_BLENDER, BlendBuilt(id=4, size_bytes=7, rank=2, seconds={"merge": 1})),
    (FROM_BLENDER, REFUSAL),
    (TO_TEMPLATES, CHECK),
    (TO_TEMPLATES, RENDER),
    (FROM_TEMPLATES, TemplateReady()),
    (FROM_TEMPLATES, TemplateFormat(5, "openai")),
    (FROM_TEMPLATES, TemplateText(6, "ü\u2028")),
    (FROM_TEMPLATES, TemplateFault(6, "refused", "no")),
]


def kind(message: object) -> str:
    return type(message).__name__


@pytest.mark.parametrize(("line", "message"), LINES, ids=[kind(message) for _, message in LINES])
def test_a_message_comes_back_as_it_was(line: Line, message: Message) -> None:
    text = written(message)
    assert b"\n" not in text
    assert line.read(text + b"\n") == message


def test_every_kind_is_here() -> None:
    assert {kind(message) for _, message in LINES} == {cls.__name__ for cls in get_args(Message)}


@pytest.mark.parametrize(("line", "message"), LINES, ids=[kind(message) for _, message in LINES])
def test_what_is_not_quite_a_message_is_none(line: Line, message: Message) -> None:
    """One field more, one less, one of another type, and a kind that goes the other way."""
    good: dict[str, Any] = json.loads(written(message))
    bad = [good | {"more": 1}, good | {"type": "gossip"}, {**good, "type": None}]
    for name in set(good) - {"type", "timings"}:
        bad += [{key: value for key, value in good.items() if key != name}, good | {name: [[]]}]
    for words in bad:
        with pytest.raises(MessageUnreadable):
            line.read(json.dumps(words).encode())


@pytest.mark.parametrize("text", [b"", b"\n", b"null", b"[]", b"1", b"{}", b"not json", b'{"type": "wake"', b"\xff"])
def test_what_is_no_object_is_no_message(text: bytes) -> None:
    for line in (TO_WORKER, FROM_WORKER, TO_BLENDER, FROM_BLENDER, TO_TEMPLATES, FROM_TEMPLATES):
        with pytest.raises(MessageUnreadable):
            line.read(text)


def test_a_number_in_quotes_is_no_number_and_no_value_is_shown() -> None:
    with pytest.raises(MessageUnreadable) as caught:
        FROM_WORKER.read(b'{"type": "rebuilt", "id": "7654", "digest": "hunter2", "seconds": 1}')
    assert "7654" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_directions_are_kept_apart() -> None:
    with pytest.raises(MessageUnreadable):
        TO_WORKER.read(written(REFUSAL))
    with pytest.raises(MessageUnreadable):
        FROM_BLENDER.read(written(PlanAnswer(id=1, forecast=FORECAST)))


def test_an_error_is_the_same_on_the_other_side() -> None:
    error = NonFinite("The result", "q")
    there = REFUSAL.error.as_error()
    assert (there.code, there.status, there.message, there.param) == (
        error.code, error.status, error.message, error.param,
    )  # fmt: skip
    assert there.type == "invalid_request_error"
    assert ErrorReport(code="x", status=503, message="later").as_error().retry_after_s == 1.0


@pytest.mark.parametrize("order", [CHECK, RENDER], ids=kind)
def test_the_template_process_reads_orders_as_the_server_wrote_them(order: TemplateCheck | TemplateRender) -> None:
    """It reads without Pydantic; what is not quite an order is none there either."""
    assert read_order(written(order) + b"\n") == order
    good: dict[str, Any] = json.loads(written(order))
    bad: list[Any] = [good | {"more": 1}, good | {"type": "gossip"}, good | {"type": []}, [], 1, None, "x"]
    bad += [{key: value for key, value in good.items() if key != name} for name in good]
    for words in bad:
        with pytest.raises(MessageUnreadable):
            read_order(json.dumps(words).encode())
    with pytest.raises(MessageUnreadable):
        read_order(b"not json")


@pytest.mark.parametrize("reply", [message for line, message in LINES if line is FROM_TEMPLATES], ids=kind)
def test_the_server_reads_replies_as_the_template_process_wrote_them(reply: Any) -> None:
    line = written_reply(reply)
    assert line.count(b"\n") == 1
    assert FROM_TEMPLATES.read(line) == reply


def test_half_of_a_surrogate_pair_reaches_a_template() -> None:
    """A line in UTF-8 cannot carry one, and a client may send one."""
    value = [{"role": "user", "content": "a\ud800b"}]
    order = TemplateRender(1, packed("{{ 1 }}"), packed(value), packed(None), packed({}), False)
    read = read_order(written(order))
    assert isinstance(read, TemplateRender)
    assert unpacked(read.messages) == value


def test_what_a_tokenizer_calls_a_token_may_be_an_object() -> None:
    class Token:
        def __str__(self) -> str:
            return "<s>"

    assert unpacked(packed({"bos_token": Token()})) == {"bos_token": "<s>"}
