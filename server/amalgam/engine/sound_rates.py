"""Sounds at another rate than the model's: brought to it by what is installed.

vLLM 0.32 asks torchaudio for it, whose builds are for CUDA and are taken away beside a CPU's torch; a sound of 24 kHz,
as speech of OpenAI's is, would be an internal error. It knows three more libraries that do it.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Final

from amalgam.engine.cpu import patches
from amalgam.errors.internal import SoundUnusable

_LIBRARIES: Final[Mapping[str, str]] = {"torchaudio": "torchaudio", "pyav": "av", "soxr": "soxr", "scipy": "scipy"}
"""It maps what vLLM calls a way to the package that it takes; the first that is there is used."""


def resampling_package() -> str | None:
    """The package that sounds are brought to a model's rate with; None where there is none."""
    return next((package for package in _LIBRARIES.values() if find_spec(package) is not None), None)


def resample_with_what_there_is() -> None:
    """Let vLLM, in this process and on CPU, bring sounds to a model's rate with a library that is installed.

    Calling it again changes nothing.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.multimodal.audio import AudioResampler

    original = AudioResampler.resample
    if original.__module__ == __name__:
        return

    def resample(resampler: Any, audio: Any, *, orig_sr: float) -> Any:
        if find_spec(_LIBRARIES[resampler.method]) is None:
            resampler = _another(resampler, orig_sr)
        try:
            return original(resampler, audio, orig_sr=orig_sr)
        except (ValueError, MemoryError):
            # The filter gave nothing, or would be larger than the memory.
            rates = f"from {orig_sr:.0f} to the {resampler.target_sr} samples a second of this model"
            raise SoundUnusable(f"the sound cannot be brought {rates}", "Send a longer one, at that rate") from None

    patches.put("vllm.multimodal.audio:AudioResampler.resample", resample)


def _another(resampler: Any, rate: float) -> Any:
    """A resampler to the same rate that works here; the same one where nothing is to be done."""
    if resampler.target_sr is None or round(rate) == round(resampler.target_sr):
        return resampler
    for way, package in _LIBRARIES.items():
        if find_spec(package) is not None:
            return type(resampler)(resampler.target_sr, method=way)
    raise SoundUnusable(
        f"a sound of {rate:.0f} samples a second has to be brought to the {resampler.target_sr:.0f} of this model, for "
        "which this server has no library",
        "Send it so, or install av on the server",
    )
