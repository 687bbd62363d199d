"""What the vLLM that is installed says of itself; a program, because a broken installation may do worse than raise.

python -m amalgam.engine.installed_vllm                       its versions and its platform
python -m amalgam.engine.installed_vllm architectures NAME…   whether it serves a model of one of the architectures
"""

import json
import os
import sys
from collections.abc import Sequence


def versions() -> str:
    """Torch's version, vLLM's, the kind of device that vLLM runs on or ``none``, and how many GPUs torch sees."""
    import torch
    import vllm
    from vllm.platforms import current_platform

    return (
        f"{torch.__version__} {vllm.__version__} {current_platform.device_type or 'none'} {torch.cuda.device_count()}"
    )


def served(architectures: Sequence[str]) -> str:
    """Say in JSON the kind of device, whether vLLM has a class for one of them, if it takes LoRA, and at which ends.

    The last entry is the device's memory in bytes.
    """
    from vllm import ModelRegistry
    from vllm.model_executor.models.interfaces import supports_lora
    from vllm.platforms import current_platform

    names = [name for name in architectures if name in ModelRegistry.get_supported_archs()]
    found = [ModelRegistry._try_load_model_cls(name) for name in names]
    adapted = any(cls is not None and supports_lora(cls) for cls in found)
    ends = sorted({name for cls in found for name in getattr(cls, "embedding_modules", None) or ()})
    return json.dumps([current_platform.device_type, bool(found), adapted, ends, memory(current_platform.is_cpu())])


def memory(is_cpu: bool) -> int:
    """Bytes of the machine's memory, or of all GPUs that torch sees."""
    if is_cpu:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    import torch

    devices = range(torch.cuda.device_count())
    return sum(int(torch.cuda.get_device_properties(number).total_memory) for number in devices)


if __name__ == "__main__":
    sys.stdout.write((served(sys.argv[2:]) if sys.argv[1:2] == ["architectures"] else versions()) + "\n")
