"""Sounds that a model can hear: with samples, each of them a number, at a rate that devices have.

A file of floats may hold what is none. One such sample is in every number that the model makes of the sound, and an
answer that is not finite restarts the engine, with everybody's requests.
"""

from typing import Any, Final

from amalgam.engine.cpu import patches
from amalgam.errors.internal import SoundUnusable

MOST_RATE: Final = 768_000
"""It counts samples a second; a filter for more takes memory without end."""
LOUDEST: Final = float(1 << 16)
"""It is far above a full sound, which lies between -1 and 1, and above whole numbers of 16 bits as floats;
squares of much larger numbers have no place in a float."""
WHOLE_FILE: Final = "Send a whole file, such as WAV, MP3 or FLAC"
NO_SAMPLES: Final = "the sound has no samples"


def hear_numbers_alone() -> None:
    """Let vLLM, in this process, refuse other sounds as a fault of the request, whichever library unpacks them.

    Calling it again changes nothing.
    """
    from vllm.multimodal.media.audio import AudioMediaIO

    original = AudioMediaIO.load_bytes
    if original.__module__ == __name__:
        return

    def load_bytes(medium: Any, data: bytes) -> tuple[Any, float]:
        sound, rate = original(medium, data)
        require_heard(sound, rate)
        return sound, rate

    patches.put("vllm.multimodal.media.audio:AudioMediaIO.load_bytes", load_bytes)


def require_heard(sound: Any, rate: float) -> None:
    """Raise SoundUnusable where a model cannot hear it.

    Args:
        sound: its samples, an array of floats.
        rate: samples a second.
    """
    if rate > MOST_RATE:
        why = f"the sound says that it has {rate:.0f} samples a second, and at most {MOST_RATE} are read"
        raise SoundUnusable(why, WHOLE_FILE)
    if sound.size == 0:
        raise SoundUnusable(NO_SAMPLES, WHOLE_FILE)
    # What is no number is neither more nor less than another.
    if not (sound.min() >= -LOUDEST and sound.max() <= LOUDEST):
        raise SoundUnusable("the sound has samples that are no numbers, or far too large", "Send some between -1 and 1")
