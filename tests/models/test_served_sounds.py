"""A tiny model that hears, in a real server: sounds in requests, and adapters by names of both generations.

It starts a server of its own, so it runs with ``make test-models`` alone; and where something unpacks sounds.
"""

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

from amalgam.engine.sound_rates import resampling_package
from tests.e2e.conftest import RunningServer
from tests.models.more_models import MORE
from tests.models.served import LogProbs, apart, asked, chatted, difference, expected, likeliest, serving
from tests.models.sounds import RATE, encoded, family, prepared, save, sound, tones, write_processor
from tests.models.tiny_models import build_row, respell, write_adapter

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not os.environ.get("AMALGAM_TEST_MODELS"), reason="a server each; run with make test-models"),
    pytest.mark.skipif(
        not any(importlib.util.find_spec(name) for name in ("soundfile", "av")),
        reason="vLLM unpacks sounds with either",
    ),
]

EXACT = 1e-4
"""Nats, in float32: sums in another order."""
QUESTION = {"type": "text", "text": "What is this?"}
LANGUAGE = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj)"

SPEECH_RATE = 24_000
"""Of the speech that OpenAI's clients make."""
RESAMPLED = 0.02
"""Nats: the libraries' filters differ, most where a sound begins and ends."""


def heard(data: str) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def test_sounds_are_heard_with_adapters_of_both_generations_of_names(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    row = family(write_processor(tmp_path / "base"))
    model = build_row(row)
    save(model, tmp_path / "base")
    sounds = [sound(0), sound(1)]
    given = [prepared(tmp_path / "base", "What is this?", samples) for samples in sounds]
    base = [expected(model, **inputs) for inputs in given]
    today, older, tower = (tmp_path / "sources" / folder for folder in ("today", "older", "tower"))
    adapted = write_adapter(model, today, LANGUAGE, seed=1)
    tuned = [expected(adapted, **inputs) for inputs in given]
    rates = [
        expected(adapted, **prepared(tmp_path / "base", "What is this?", tones(one))) for one in (RATE, SPEECH_RATE)
    ]
    assert apart(*rates) > 2 * RESAMPLED
    write_adapter(build_row(row), older, LANGUAGE, seed=1)
    respell(older, MORE["audioflamingo3"].older)
    write_adapter(build_row(row), tower, r".*audio_tower.*\.q_proj", seed=1)
    assert apart(base[0], base[1]) > 10 * EXACT
    assert apart(base[0], tuned[0]) > 10 * EXACT

    with serving(tmp_path, {"today": today, "older": older}, "--dtype", "float32", "--max-model-len", "1024") as server:
        for samples, plain, changed in zip(sounds, base, tuned, strict=True):
            part = heard(encoded(samples))
            assert difference(chatted(server, "base", part, QUESTION), plain) < EXACT
            for name in ("today", "older"):
                assert difference(chatted(server, name, part, QUESTION), changed) < EXACT
        _another_rate_is_brought_to_the_models(server, rates[0])
        with server.admin() as admin:
            refused = admin.post("/admin/v1/adapters", json={"name": "tower", "source": f"file://{tower}"})
        assert refused.status_code == 422, refused.text
        assert "audio_tower" in refused.text
        with server.client() as client:
            body = {"model": "base", "messages": [{"role": "user", "content": [heard("AAAA"), QUESTION]}]}
            assert client.post("/v1/chat/completions", json=body).status_code == 400


def _another_rate_is_brought_to_the_models(server: RunningServer, right: LogProbs) -> None:
    """Or it is refused with the rate, where nothing is installed that could."""
    answer = asked(server, "older", heard(encoded(tones(SPEECH_RATE), SPEECH_RATE)), QUESTION)
    if resampling_package() is None:
        assert answer.status_code == 400, answer.text
        assert f"the {RATE} of this model" in answer.json()["error"]["message"]
    else:
        assert difference(likeliest(answer), right) < RESAMPLED
