"""vLLM plugin: puts our LoRA operations in the place of vLLM's own on the CPU platform.

vLLM calls `install` in each of its processes (entry point group ``vllm.general_plugins``), so it stays cheap: it
imports neither torch nor our operations; vLLM resolves their name when it builds the model's LoRA layers.
"""

from typing import Any, Final

from amalgam.errors.cpu_lora import CpuLoraUntested
from amalgam.settings import Settings

TESTED_VLLM: Final = "0.32"
WRAPPER: Final = "amalgam.engine.cpu_lora_wrapper.GroupedPunicaWrapper"


def install() -> None:
    """Make the CPU platform name our wrapper; does nothing elsewhere, or with ``AMALGAM_CPU_LORA=stock``.

    Calling it again changes nothing.

    Raises:
        CpuLoraUntested: The platform is CPU and vLLM's version is not the tested one.
    """
    import vllm
    from vllm.platforms import current_platform

    if not current_platform.is_cpu() or Settings().cpu_lora == "stock":
        return
    if not is_tested(vllm.__version__):
        raise CpuLoraUntested(vllm.__version__, TESTED_VLLM)
    type(current_platform).get_punica_wrapper = classmethod(_wrapper_name)


def is_tested(version: str) -> bool:
    """Whether version is a release of `TESTED_VLLM`, such as ``0.32.0`` or ``0.32.1+cpu``."""
    return version.split("+", 1)[0].split(".")[:2] == TESTED_VLLM.split(".")


def _wrapper_name(_platform: type[Any]) -> str:
    """Asked for when LoRA layers are about to be built, which is when adapters' way into them is to be ours as well."""
    from amalgam.engine.cpu_lora_uptake import replace_uptake

    replace_uptake()
    return WRAPPER
