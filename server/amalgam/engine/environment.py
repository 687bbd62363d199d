"""The environment that vLLM reads at import: our defaults, set before vLLM is imported; what is set already stays."""

import os
import re
from pathlib import Path
from typing import Final

_DEFAULTS: Final = {
    # The engine's core starts threads of its own before it forks; spawn is the safe way, and vLLM's own default.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_NO_USAGE_STATS": "1",
    # What vLLM warns of on CPU (no Triton, no tcmalloc) is known and repeated by each of its processes.
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
    # Of each row of logits; what is found is acted upon in `finite_answers`.
    "VLLM_COMPUTE_NANS_IN_LOGITS": "1",
    # Every core, where vLLM would keep one back; and none bound to its core: a library that multiplies counts the cores
    # that its caller may run on, and takes one thread where the first one is bound.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # A host that is allowed may still send its callers to another one.
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    "VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB": "16",
    # As many as a request and a profile may have here; vLLM by itself refuses a fifth.
    "VLLM_MAX_STOP_STRINGS": "32",
}

_GIB: Final = 1 << 30
_KV_SHARE: Final = 8
_KV_LARGEST_GIB: Final = 8


def prepare_environment(log_config: Path | None = None, media_pixels: int | None = None) -> None:
    """Set the defaults.

    Args:
        log_config: a file that says how vLLM's processes log; None leaves it to vLLM.
        media_pixels: of one picture, at most, also of one that is fetched; None leaves it to vLLM.
    """
    logs = {} if log_config is None else {"VLLM_LOGGING_CONFIG_PATH": str(log_config)}
    pixels = {} if media_pixels is None else {"VLLM_MAX_IMAGE_PIXELS": str(media_pixels)}
    space = {"VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib(free_memory()))}
    for name, value in (_DEFAULTS | space | logs | pixels).items():
        os.environ.setdefault(name, value)


def kv_cache_gib(free: int) -> int:
    """GiB of KV cache on a CPU, of so many free bytes: an eighth, at least 1 and at most 8.

    vLLM by itself would take most of the machine's memory, also for a model that needs a hundredth of it; and all of
    the cache is written to at the start.
    """
    return min(max(free // _KV_SHARE // _GIB, 1), _KV_LARGEST_GIB)


def free_memory(system: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that may be taken without swapping, by the system and by the control group (version 2); 0 if unknown.

    Args:
        system: What Linux says of its memory.
        group: The folder of the process's control group, such as a container's.
    """
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _text(system), re.MULTILINE)
    free = int(found[1]) * 1024 if found else 0
    limit, used = _text(group / "memory.max").strip(), _text(group / "memory.current").strip()
    # Without a limit the file says "max".
    return min(free, max(int(limit) - int(used), 0)) if limit.isdecimal() and used.isdecimal() else free


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
