"""Samples that no model can hear are refused before the model has them, whichever library unpacked them."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from vllm.multimodal.media import audio
from vllm.multimodal.media.audio import AudioMediaIO

from amalgam.engine.sound_values import LOUDEST, MOST_RATE, hear_numbers_alone, require_heard
from amalgam.errors.internal import SoundUnusable

GOOD = np.array([0.5, -1.0, 0.0, 1.0], np.float32)
NO_NUMBERS = "no numbers, or far too large"
UNHEARD = [
    (np.append(GOOD, np.float32(math.nan)), 16_000, NO_NUMBERS),
    (np.append(np.float32(math.nan), GOOD), 16_000, NO_NUMBERS),
    (np.append(GOOD, np.float32(math.inf)), 16_000, NO_NUMBERS),
    (np.append(GOOD, np.float32(-math.inf)), 16_000, NO_NUMBERS),
    (np.append(GOOD, np.float32(2 * LOUDEST)), 16_000, NO_NUMBERS),
    (np.append(GOOD, np.float32(-2 * LOUDEST)), 16_000, NO_NUMBERS),
    (np.full((2, 3), math.nan), 16_000, NO_NUMBERS),
    (np.zeros(0, np.float32), 16_000, "no samples"),
    (GOOD, MOST_RATE + 1, "at most 768000 are read"),
]


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, float]]]:
    """What vLLM's libraries give for any file; what is replaced in vLLM is put back."""
    given: list[tuple[Any, float]] = []
    monkeypatch.setattr(audio, "load_audio", lambda *_, **__: given[0])
    original = AudioMediaIO.load_bytes
    hear_numbers_alone()
    hear_numbers_alone()
    yield given
    AudioMediaIO.load_bytes = original


@pytest.mark.parametrize(("sound", "rate", "words"), UNHEARD, ids=range(len(UNHEARD)))
def test_a_sound_that_no_model_can_hear_is_the_requests_fault(
    sound: Any, rate: float, words: str, unpacked: list[tuple[Any, float]]
) -> None:
    unpacked.append((sound, rate))
    with pytest.raises(SoundUnusable, match=words):
        AudioMediaIO().load_base64("audio/wav", "AAAA")


@pytest.mark.parametrize("rate", [1, 8_000, 44_100, MOST_RATE])
def test_what_can_be_heard_is_what_was_unpacked(rate: float, unpacked: list[tuple[Any, float]]) -> None:
    unpacked.append((GOOD * np.float32(32_768), rate))
    found, its_rate = AudioMediaIO().load_bytes(b"")
    assert found is unpacked[0][0]
    assert its_rate == rate
    require_heard(GOOD.astype(np.float64)[None], rate)
