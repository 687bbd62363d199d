"""The environment that vLLM reads at import: our defaults, set before vLLM is imported; what is set already stays."""

import os
from pathlib import Path
from typing import Final

_DEFAULTS: Final = {
    # The engine's core starts threads of its own before it forks; spawn is the safe way, and vLLM's own default.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_NO_USAGE_STATS": "1",
    # What vLLM warns of on CPU (no Triton, no tcmalloc) is known and repeated by each of its processes.
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
    # GiB. vLLM would take most of the machine's memory for a model that needs a hundredth of it.
    "VLLM_CPU_KVCACHE_SPACE": "2",
    # Every core, where vLLM would keep one back; and none bound to its core: a library that multiplies counts the cores
    # that its caller may run on, and takes one thread where the first one is bound.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


def prepare_environment(log_config: Path | None = None) -> None:
    """Set the defaults.

    Args:
        log_config: a file that says how vLLM's processes log; None leaves it to vLLM.
    """
    logs = {} if log_config is None else {"VLLM_LOGGING_CONFIG_PATH": str(log_config)}
    for name, value in (_DEFAULTS | logs).items():
        os.environ.setdefault(name, value)
