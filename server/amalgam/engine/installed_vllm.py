"""What the vLLM that is installed says of itself; a program, because a broken installation may do worse than raise.

python -m amalgam.engine.installed_vllm                           its versions and its platform
python -m amalgam.engine.installed_vllm architectures NAME…       whether it serves a model of one of the architectures
python -m amalgam.engine.installed_vllm base FOLDER any|16 NAME…  that, and what it makes of such a model's folder
"""

import json
import os
import sys
from collections.abc import Sequence
from typing import Any


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


def judged(model: str, architectures: Sequence[str], *, in_sixteen_bits: bool) -> str:
    """What `served` says, and then two reasons or nulls; no weight is read.

    The one is why vLLM cannot start with the folder as it is, the other why nothing makes prompts of conversations.

    Args:
        model: the base model's folder.
        architectures: its own, of its config.
        in_sixteen_bits: whether it is served in 16 bits alone.
    """
    said = json.loads(served(architectures))
    _, known, adapted, *_ = said
    reasons = _reasons(model, in_sixteen_bits=in_sixteen_bits) if known and adapted else (None, None)
    return json.dumps([*said, *reasons])


def _reasons(model: str, *, in_sixteen_bits: bool) -> tuple[str | None, str | None]:
    from amalgam.engine.start_reason import start_reason
    from amalgam.engine.vllm_arguments import our_flags, parsed, serve_parser
    from amalgam.engine.vllm_client import engine_config
    from amalgam.errors.engine import BaseNotServable
    from amalgam.settings import Settings

    try:
        flags = our_flags(Settings(), model, "base", in_sixteen_bits=lambda: in_sixteen_bits, is_demo=False)
        _, config = engine_config(parsed(serve_parser(), flags))
    except BaseNotServable as error:
        return error.why, None
    except Exception as error:
        return start_reason(error), None
    return None, _why_no_conversations(config.model_config)


def _why_no_conversations(model_config: Any) -> str | None:
    from vllm.tokenizers import cached_tokenizer_from_config

    from amalgam.engine.base_template import why_no_conversations

    return why_no_conversations(model_config, cached_tokenizer_from_config(model_config))


def memory(is_cpu: bool) -> int:
    """Bytes of the machine's memory, or of all GPUs that torch sees."""
    if is_cpu:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    import torch

    devices = range(torch.cuda.device_count())
    return sum(int(torch.cuda.get_device_properties(number).total_memory) for number in devices)


def main(words: Sequence[str]) -> str:
    """What the arguments of the program ask for."""
    if words[:1] == ["base"]:
        return judged(words[1], words[3:], in_sixteen_bits=words[2] == "16")
    return served(words[1:]) if words[:1] == ["architectures"] else versions()


if __name__ == "__main__":
    sys.stdout.write(main(sys.argv[1:]) + "\n")
