"""Blends on the running server: what answers equals the durable merge; memory for blends is small and streams hold."""

from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.adapter_factory import write_lora
from tests.e2e.conftest import RunningServer
from tests.e2e.test_adapter_lifecycle import PROMPT, logprobs, push

BUILT = "amalgam_blends_built_total"
EVICTED = "amalgam_blend_evictions_total"


def test_a_blend_answers_like_the_merge_of_the_same_recipe(
    server: RunningServer, admin: httpx.Client, client: openai.OpenAI
) -> None:
    expression = "0.875*sql + 0.375*json"
    raw = client.chat.completions.with_raw_response.create(model=expression, messages=PROMPT, max_tokens=1)
    name = raw.headers["x-amalgam-adapter"]
    assert raw.parse().model == name
    assert raw.headers["x-amalgam-recipe"] == "0.375*json@1 + 0.875*sql@1"
    built = server.metric(BUILT)
    blended = logprobs(client, expression)
    assert blended == pytest.approx(logprobs(client, name), abs=1e-3)
    assert server.metric(BUILT) == built
    assert blended not in (pytest.approx(logprobs(client, "sql"), abs=1e-3), pytest.approx(logprobs(client, "json")))
    made = admin.post(
        "/admin/v1/merges",
        params={"wait_s": 60},
        json={"name": "promoted", "expression": raw.headers["x-amalgam-recipe"]},
    )
    assert made.status_code == 201, made.text
    assert name == f"blend@{made.json()['recipe_digest'][:12]}"
    assert logprobs(client, "promoted") == pytest.approx(blended, abs=1e-3)
    again = client.chat.completions.create(model=expression, messages=PROMPT, max_tokens=1)
    assert again.model == "promoted@1"


def test_every_dialect_takes_a_blend(client: openai.OpenAI) -> None:
    model = "sql - 0.25*json"
    text: Any = {"model": model, "max_tokens": 2, "messages": PROMPT}
    calls = {"/messages": text, "/completions": {"model": model, "prompt": "a", "max_tokens": 2}}
    calls |= {"/responses": {"model": model, "input": "a", "max_output_tokens": 2}}
    answers = [client.post(path, body=body, cast_to=httpx.Response) for path, body in calls.items()]
    assert len({answer.json()["model"] for answer in answers}) == 1
    assert {answer.headers["x-amalgam-recipe"] for answer in answers} == {"-0.25*json@1 + sql@1"}


@pytest.mark.slow
def test_a_blend_that_streams_is_not_evicted_by_others(
    exact_server: RunningServer, exact_client: openai.OpenAI
) -> None:
    # The test server has memory for three blends of two demo adapters. It is the exact one, because a text is compared
    # that is streamed once alone and once beside others.
    server, client = exact_server, exact_client
    asked: dict[str, Any] = {"model": "sql + 0.25*code", "prompt": "SELECT", "max_tokens": 48, "temperature": 0}
    alone = client.completions.create(**asked, extra_body={"ignore_eos": True})
    built, evicted = server.metric(BUILT), server.metric(EVICTED)
    pieces, others = [], 0
    for piece in client.completions.create(**asked, stream=True, extra_body={"ignore_eos": True}):
        assert piece.model == alone.model
        pieces.append(piece.choices[0].text)
        if len(pieces) % 8 == 1 and others < 4:
            others += 1
            answer = client.completions.create(model=f"json + 0.{others}*code", prompt="a", max_tokens=1)
            assert answer.model.startswith("blend@")
    assert "".join(pieces) == alone.choices[0].text
    assert server.metric(BUILT) - built == others == 4
    assert server.metric(EVICTED) - evicted >= 2
    assert server.metric("amalgam_blend_bytes") <= 32 << 20


def test_what_cannot_be_blended_is_told_and_the_engine_goes_on(client: openai.OpenAI) -> None:
    for model, code in (("sql + nosuch", "model_not_found"), ("cat(sql, json, code; rank=64)", "rank_too_large")):
        with pytest.raises(openai.APIStatusError) as refused:
            client.completions.create(model=model, prompt="a", max_tokens=1)
        assert refused.value.code == code
    assert client.completions.create(model="sql + 0.25*code", prompt="a", max_tokens=1).choices


def test_a_blend_of_float32_inputs_is_not_rounded_in_an_engine_of_float32(
    exact_admin: httpx.Client, exact_client: openai.OpenAI, tmp_path: Path
) -> None:
    for seed, name in enumerate(("wide-a", "wide-b")):
        # Large enough that what bfloat16 rounds off shows in a log-probability.
        made = push(exact_admin, name, write_lora(tmp_path / name, rank=8, seed=seed, std=0.05, dtype="float32"))
        assert made.status_code == 201, made.text
    weighted = "wide-a@1, 0.3*wide-b@1"
    blended = logprobs(exact_client, "wide-a + 0.3*wide-b")
    for dtype in ("float32", "bfloat16"):
        # The merges have a digest of their own by what they allow: else they would answer in the blend's place.
        expression = f"task_arithmetic({weighted}; dtype={dtype}, allow_base_mismatch=true)"
        made = exact_admin.post(
            "/admin/v1/merges", params={"wait_s": 60}, json={"name": f"wide-{dtype}", "expression": expression}
        )
        assert made.status_code == 201, made.text
    assert exact_client.chat.completions.create(
        model="wide-a + 0.3*wide-b", messages=PROMPT, max_tokens=1
    ).model.startswith("blend@")
    rounded = logprobs(exact_client, "wide-bfloat16")
    assert blended == pytest.approx(logprobs(exact_client, "wide-float32"), abs=1e-4)
    assert max(abs(one - other) for one, other in zip(blended, rounded, strict=True)) > 3e-4
