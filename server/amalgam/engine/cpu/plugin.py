"""vLLM plugin: puts our LoRA operations in the place of vLLM's own on the CPU platform.

vLLM calls `install` in each of its processes (entry point group ``vllm.general_plugins``), so it stays cheap: it
imports neither torch nor our operations; vLLM resolves their name when it builds the model's LoRA layers.
"""

from typing import Any, Final

from amalgam.engine.cpu import patches
from amalgam.errors.cpu_lora import CpuLoraUntested
from amalgam.settings import Settings

PLUGIN_GROUP: Final = "vllm.general_plugins"
PLUGINS: Final = ("amalgam.engine.cpu.plugin:install", "amalgam.engine.cpu.waits:install")
"""An installation of Amalgam names these to vLLM."""
TESTED_VLLM: Final = "0.32"
"""The CPU's build is of this version; inner symbols of it are replaced."""
GPU_VLLM: Final = "0.33"
"""The build for GPUs is of this version, which follows sooner."""
WRAPPER: Final = "amalgam.engine.cpu.products.GroupedPunicaWrapper"


def install() -> None:
    """Make the CPU platform name our wrapper, not with ``AMALGAM_CPU_LORA=stock``, and keep LoRA off routed experts.

    Does nothing on other platforms.

    Calling it again changes nothing.

    Raises:
        CpuLoraUntested: The platform is CPU and vLLM's version is not the tested one.
    """
    import vllm
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    if is_tested(vllm.__version__):
        patches.apply("begin", on=type(current_platform))
    if Settings().engine.cpu_lora == "stock":
        return
    if not is_tested(vllm.__version__):
        raise CpuLoraUntested(vllm.__version__, TESTED_VLLM)
    patches.apply("wrapper", on=type(current_platform))


def is_tested(version: str, release: str = TESTED_VLLM) -> bool:
    """Whether version is one of ``release``, such as ``0.32.0`` or ``0.32.1+cpu`` of 0.32."""
    return version.split("+", 1)[0].split(".")[:2] == release.split(".")


def naming_our_wrapper(_original: Any) -> Any:
    """Stands in for `CpuPlatform.get_punica_wrapper`, which is asked when LoRA layers are about to be built.

    That is also when the layers themselves are to take adapters in our way.
    """

    def name(_platform: type[Any]) -> str:
        patches.apply("layers")
        return WRAPPER

    return classmethod(name)
