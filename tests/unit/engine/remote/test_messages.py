"""What fronts and replicas say to each other comes back as it was."""

from pathlib import Path

import pytest

from amalgam.domain.blend_plan import BlendPlan, PlannedInput
from amalgam.domain.expression import parse_expression
from amalgam.engine.protocol import CallProfile, LoadableVersion
from amalgam.engine.remote.messages import CallOrder, ToldProfile, ToldVersion, kind_of, piece, read_piece
from amalgam.engine.remote.told_errors import ToldError
from amalgam.errors import AmalgamError
from amalgam.errors.adapters import ArtifactDamaged
from amalgam.errors.blends import BlendMemoryBusy
from amalgam.errors.engine import EngineLoadFailed, EngineNotReady, EngineRefused, NonFiniteOutput, SlotsBusy
from amalgam.errors.merging import NoInputs
from amalgam.errors.profiles import ChatTemplateFailed
from amalgam.errors.registry import ObjectStoreUnavailable
from amalgam.errors.reported import ReportedError
from amalgam.errors.requests import EndpointUnsupported
from amalgam.merge.methods import complete
from amalgam.telemetry.context import Asker, TokenCount


def test_an_order_comes_back_with_half_a_surrogate_pair_and_a_large_number() -> None:
    body = {"model": "a@1", "messages": [{"role": "user", "content": "\ud83d x é"}], "seed": 1 << 62, "n": None}
    version = ToldVersion.of(LoadableVersion("a@1", 7, Path("/store/objects/ab/abc"), "abc"))
    profile = ToldProfile.of(CallProfile(None, {"min_p": 0.5}))
    order = CallOrder("chat_completions", body, version, profile, (("traceparent", "00-1-2-3"),), "req-1")
    assert CallOrder.read(order.written()) == order


def test_a_version_is_told_by_its_digest_and_a_blend_by_its_plan() -> None:
    version = ToldVersion.of(LoadableVersion("a@1", 7, Path("/store/objects/ab/abc"), "abc"))
    assert (version.digest, version.plan) == ("abc", None)
    recipe = complete(parse_expression("ties(a@1, b@1; density=0.5)"))
    inputs = {
        "a@1": PlannedInput(lora_id=1, digest="abc", base="x"),
        "b@1": PlannedInput(lora_id=2, digest="d", base="x"),
    }
    plan = BlendPlan(digest=recipe.digest(), recipe=recipe, inputs=inputs, max_rank=8, reserve_bytes=100, client="c")
    blend = ToldVersion.of(LoadableVersion("blend@1", 1 << 30, Path(), plan=plan))
    asker = Asker("c", "acme", 2.0, 3)
    order = CallOrder("chat_completions", {"model": "blend@1"}, blend, None, (), "req-1", asker)
    told = CallOrder.read(order.written())
    assert told.version is not None
    assert told.version.plan is not None
    assert told.version.plan.recipe.digest() == plan.digest
    assert told == order


def test_a_piece_carries_the_tokens_so_far() -> None:
    frame = piece(b"data: x\n\n", TokenCount(prompt=3, cached=1, completion=1 << 40))
    assert kind_of(frame) == b"P"
    assert read_piece(frame) == (TokenCount(3, 1, 1 << 40), b"data: x\n\n")


@pytest.mark.parametrize(
    "error",
    [
        EngineNotReady("dead"),
        EngineLoadFailed("a@1", "too large"),
        EngineRefused(422, "no", "n"),
        NonFiniteOutput("a@1"),
        SlotsBusy("a@1", 60),
        EndpointUnsupported("embeddings"),
        ChatTemplateFailed("a@1", "it loops"),
        ArtifactDamaged("abc"),
        ObjectStoreUnavailable("it is away"),
        BlendMemoryBusy(5),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_keeps_class_code_status_words_and_field(error: AmalgamError) -> None:
    again = ToldError.model_validate_json(ToldError.of(error).model_dump_json()).as_error()
    assert type(again) is type(error)
    for name in ("code", "status", "type", "message", "param", "retry_after_s"):
        assert getattr(again, name) == getattr(error, name), name
    assert str(again) == str(error)
    assert again.at("model").param == "model"


def test_an_error_of_a_class_that_no_engine_raises_keeps_its_code() -> None:
    again = ToldError.of(NoInputs()).as_error()
    assert isinstance(again, ReportedError)
    assert again.code == NoInputs.code
