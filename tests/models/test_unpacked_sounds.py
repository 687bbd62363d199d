"""Sounds that av unpacks, by vLLM's own way to it: the samples that are in the file, of any type, rate and channels."""

import base64
import io
import math
import socket
import struct
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av")

from vllm.multimodal.media import audio
from vllm.multimodal.media.audio import AudioMediaIO, load_audio

from amalgam.engine.sound_samples import samples, unpack_sounds_as_they_are
from amalgam.engine.sound_values import MOST_RATE, hear_numbers_alone
from amalgam.errors.internal import SoundUnusable

RATE = 8_000
ROUNDED = {1: 2**-7, 2: 2**-15, 3: 2**-23, 4: 2**-23}
"""By bytes of a sample: a step of whole numbers, or of a float."""


@pytest.fixture(autouse=True)
def replaced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a server, where vLLM has neither soundfile nor torchcodec; put back afterwards."""
    originals = audio.load_audio_pyav, audio._AUDIO_LOADERS, AudioMediaIO.load_bytes
    for name in ("load_audio_soundfile", "load_audio_torchcodec"):
        monkeypatch.setattr(audio, name, _missing)
    unpack_sounds_as_they_are()
    unpack_sounds_as_they_are()
    hear_numbers_alone()
    yield
    audio.load_audio_pyav, audio._AUDIO_LOADERS, AudioMediaIO.load_bytes = originals


def _missing(*_: Any, **__: Any) -> Any:
    raise ImportError("not installed here")


def waves(channels: int, count: int = 2 * RATE) -> Any:
    """[channels, count], no two alike."""
    at = np.arange(count) / RATE
    return np.stack([0.9 * np.sin(2 * np.pi * (200 + 170 * channel) * at + channel) for channel in range(channels)])


def file_of(sound: Any, width: int = 2, rate: int = RATE) -> bytes:
    """A WAV file with ``width`` bytes a sample."""
    whole = np.round(sound.T * (2 ** (8 * width - 1) - 1)).astype(np.int64).ravel()
    whole = whole + 128 if width == 1 else whole
    out = io.BytesIO()
    with wave.open(out, "wb") as written:
        written.setnchannels(len(sound))
        written.setsampwidth(width)
        written.setframerate(rate)
        written.writeframes(b"".join(int(one).to_bytes(width, "little", signed=width > 1) for one in whole))
    return out.getvalue()


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_av_gives_the_samples_that_are_in_the_file(width: int, channels: int) -> None:
    sound = waves(channels)
    data = file_of(sound, width)
    for found, rate in (
        AudioMediaIO().load_base64("audio/wav", base64.b64encode(data).decode()),
        load_audio(io.BytesIO(data), sr=None, backend="pyav"),
    ):
        assert (found.dtype, found.shape, rate) == (np.float32, (2 * RATE,), RATE)
        assert np.abs(found - sound.mean(axis=0)).max() <= 2 * ROUNDED[width]
    apart, _ = samples(io.BytesIO(data), sr=None, mono=False)
    assert apart.shape == sound.shape
    assert np.abs(apart - sound).max() <= 2 * ROUNDED[width]


def test_another_rate_has_all_of_the_sound() -> None:
    found, rate = samples(io.BytesIO(file_of(waves(2))), sr=2 * RATE)
    assert rate == 2 * RATE
    assert len(found) == pytest.approx(4 * RATE, abs=64)
    at = np.arange(len(found)) / (2 * RATE)
    expected = np.mean([0.9 * np.sin(2 * np.pi * (200 + 170 * one) * at + one) for one in range(2)], axis=0)
    assert np.abs(found - expected)[200:-200].max() < 0.01


def test_what_is_too_long_or_no_sound_is_refused_with_what_to_send() -> None:
    data = file_of(waves(1))
    for bounds, words in (({"max_duration_s": 1.5}, "longer than 2 s"), ({"max_decode_bytes": 999}, "more than 999")):
        with pytest.raises(SoundUnusable, match=f"{words}.*Send a part"):
            samples(io.BytesIO(data), sr=None, **bounds)
    head = data[:40] + struct.pack("<I", 0)
    for broken in (b"", b"RIFF", b"no sound at all" * 20, head):
        with pytest.raises(SoundUnusable, match="Send a"):
            samples(io.BytesIO(broken), sr=None)


@pytest.mark.parametrize("rate", [MOST_RATE + 1, 0xFFFFFFF, 0x7FFFFFFF])
def test_a_rate_that_no_device_has_is_refused_before_a_filter_is_made_for_it(rate: int) -> None:
    data = file_of(waves(1))
    with pytest.raises(SoundUnusable, match=f"says that it has {rate} samples a second"):
        AudioMediaIO().load_bytes(data[:24] + struct.pack("<I", rate) + data[28:])


@pytest.mark.parametrize("of", ["file", "http"])
@pytest.mark.parametrize("playlist", [
    "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n",
    "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{}\n", "ffconcat version 1.0\nfile '{}'\n",
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT2S">'
    '<Period><AdaptationSet mimeType="audio/mp4"><Representation id="1" bandwidth="1"><BaseURL>{}</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>",
], ids=["segments", "streams", "concat", "dash"])  # fmt: skip
def test_a_list_of_other_places_is_no_sound_and_nothing_is_fetched(playlist: str, of: str, tmp_path: Path) -> None:
    """FFmpeg reads such lists, of files of this machine and of addresses that only it can reach."""
    (tmp_path / "secret.wav").write_bytes(file_of(waves(1)))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        places = {
            "file": f"file://{tmp_path}/secret.wav",
            "http": f"http://127.0.0.1:{listener.getsockname()[1]}/a.wav",
        }
        with pytest.raises(SoundUnusable):
            samples(io.BytesIO(playlist.format(places[of]).encode()), sr=None)
        with pytest.raises(TimeoutError):
            listener.accept()


@pytest.mark.parametrize("sample", [math.nan, math.inf, -math.inf, 1e38])
def test_a_sample_that_is_no_number_is_refused(sample: float) -> None:
    data = struct.pack("<400f", *[0.5] * 200, sample, *[0.5] * 199)
    form = struct.pack("<HHIIHH", 3, 1, RATE, 4 * RATE, 4, 32)
    file = b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + struct.pack("<I", len(form)) + form
    file += b"data" + struct.pack("<I", len(data)) + data
    with pytest.raises(SoundUnusable, match="no numbers, or far too large"):
        AudioMediaIO().load_bytes(file)
