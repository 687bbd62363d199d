"""Sounds at other rates than the model's, with whatever of vLLM's libraries for it is installed."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from vllm.multimodal import audio
from vllm.multimodal.audio import AudioResampler

from amalgam.engine import sound_rates
from amalgam.engine.sound_rates import resample_with_what_there_is, resampling_package
from amalgam.errors.internal import SoundUnusable

SOUND = np.zeros(24_000, np.float32)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Packages that are taken for installed; what is replaced in vLLM is put back."""
    packages: set[str] = set()
    monkeypatch.setattr(sound_rates, "find_spec", lambda name: object() if name in packages else None)
    original = AudioResampler.resample
    resample_with_what_there_is()
    yield packages
    AudioResampler.resample = original


@pytest.mark.parametrize(
    ("packages", "way"),
    [
        ({"torchaudio", "av"}, "torchaudio"),
        ({"av", "scipy"}, "pyav"),
        ({"soxr"}, "soxr"),
        ({"scipy"}, "scipy"),
    ],
)
def test_a_sound_of_another_rate_is_resampled_by_what_is_installed(
    packages: set[str], way: str, installed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed |= packages
    asked: list[Any] = []
    for name in ("torchaudio", "pyav", "soxr", "scipy"):
        monkeypatch.setattr(
            audio,
            f"resample_audio_{name}",
            lambda sound, *, orig_sr, target_sr, name=name: asked.append((name, len(sound), orig_sr, target_sr)),
        )
    AudioResampler(16_000).resample(SOUND, orig_sr=24_000)
    assert asked == [(way, 24_000, 24_000, 16_000)]


@pytest.mark.parametrize("failure", [ValueError("need at least one array"), MemoryError()])
def test_what_a_library_cannot_resample_is_the_requests_fault(
    failure: Exception, installed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise failure

    installed.add("av")
    monkeypatch.setattr(audio, "resample_audio_pyav", fails)
    with pytest.raises(SoundUnusable, match="from 192000 to the 16000 samples a second of this model"):
        AudioResampler(16_000).resample(SOUND, orig_sr=192_000)


def test_without_a_library_the_request_is_told_the_rate_that_the_model_reads(installed: set[str]) -> None:
    assert resampling_package() is None
    with pytest.raises(SoundUnusable, match=r"24000 samples a second .* the 16000 of this model.* install av"):
        AudioResampler(16_000).resample(SOUND, orig_sr=24_000)
    assert AudioResampler(16_000).resample(SOUND, orig_sr=16_000) is SOUND
    installed.add("scipy")
    assert resampling_package() == "scipy"


def test_replacing_twice_replaces_once(installed: set[str]) -> None:
    assert not installed
    once = AudioResampler.resample
    resample_with_what_there_is()
    assert AudioResampler.resample is once
