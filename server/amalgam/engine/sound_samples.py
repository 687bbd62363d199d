"""Sounds as samples between -1 and 1, channel by channel, where av unpacks them.

vLLM 0.32 passes on what av gives: of a WAV file the whole numbers of its sixteen bits, 32,768 times too loud, and the
channels of a stereo one behind each other as one that is twice as long.
"""

from collections.abc import Iterator
from typing import Any, Final

from amalgam.engine.cpu import patches
from amalgam.engine.sound_values import NO_SAMPLES, WHOLE_FILE
from amalgam.errors.internal import SoundUnusable

_BROKEN: Final = "the sound cannot be unpacked"
_LONG: Final = "the sound is longer than {:.0f} s once it is unpacked (VLLM_MAX_AUDIO_DECODE_DURATION_S)"
_LARGE: Final = "the sound has more than {} bytes once it is unpacked (VLLM_MAX_AUDIO_DECODE_BYTES)"
_PART: Final = "Send a part"


def unpack_sounds_as_they_are() -> None:
    """Let vLLM, in this process and on CPU, read with av what soundfile would read.

    Calling it again changes nothing.
    """
    from vllm.multimodal.media import audio
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        patches.put("vllm.multimodal.media.audio:load_audio_pyav", samples)
        patches.put("vllm.multimodal.media.audio:_AUDIO_LOADERS", {**audio._AUDIO_LOADERS, "pyav": samples})


def samples(
    path: Any,
    *,
    sr: float | None = 22050,
    mono: bool = True,
    max_duration_s: float | None = None,
    max_decode_bytes: int | None = None,
) -> tuple[Any, float]:
    """The sound in ``path`` and its rate, as vLLM asks for them.

    Args:
        path: a file's path, or its bytes as a file.
        sr: samples a second that are wanted; None for its own.
        mono: whether channels become their mean.
        max_duration_s: seconds that it may have.
        max_decode_bytes: bytes that its samples may have.

    Returns: float32, [samples] or [channels, samples]; and samples a second.

    Raises:
        SoundUnusable: it is none, is broken, or is too long; vLLM answers it as a fault of the request.
        ImportError: av is not installed.
    """
    import av
    import numpy as np

    try:
        with av.open(path) as container:
            if not container.streams.audio:
                raise SoundUnusable(NO_SAMPLES, WHOLE_FILE)
            stream = container.streams.audio[0]
            rate = sr or stream.rate
            pieces, count, size = [], 0, 0
            for piece in _pieces(av, container, stream, rate):
                count, size = count + piece.shape[-1], size + piece.nbytes
                if max_duration_s is not None and count > int(rate * max_duration_s):
                    raise SoundUnusable(_LONG.format(max_duration_s), _PART)
                if max_decode_bytes is not None and size > max_decode_bytes:
                    raise SoundUnusable(_LARGE.format(max_decode_bytes), _PART)
                pieces.append(piece)
    except av.error.FFmpegError:
        raise SoundUnusable(_BROKEN, WHOLE_FILE) from None
    if not count:
        raise SoundUnusable(NO_SAMPLES, WHOLE_FILE)
    sound = np.concatenate(pieces, axis=-1)
    return (sound.mean(axis=0, dtype=np.float32) if mono else sound), rate


def _pieces(av: Any, container: Any, stream: Any, rate: float) -> Iterator[Any]:
    """Parts of the sound, [channels, samples]; the last one is what the resampler has kept back."""
    floats = av.AudioResampler(format="fltp", rate=round(rate))
    for frame in container.decode(stream):
        for part in floats.resample(frame):
            yield part.to_ndarray()
    for part in floats.resample(None):
        if part is not None:
            yield part.to_ndarray()
