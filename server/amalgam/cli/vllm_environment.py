"""Variables that vLLM's own server reads and this one does not: whoever set one is told at the start.

A flag without effect is refused, because it was given to this very command. A variable may be there for another
program, so the start goes on.
"""

from collections.abc import Iterator, Mapping
from typing import Final

_NOT_SERVED: Final = "the routes that it is about are not served"

WITHOUT_EFFECT: Final[Mapping[str, str]] = {
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "set AMALGAM_KEEP_ALIVE_S",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "answers are never logged; set AMALGAM_ACCESS_LOG=true for a line a request",
    "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "an engine that died is restarted, and the server stays",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "adapters are always loaded at runtime, by the admin key",
    "VLLM_LORA_RESOLVER_CACHE_DIR": "set AMALGAM_SOURCE_ROOTS, and register what lies there",
    "VLLM_LORA_RESOLVER_HF_REPO_LIST": "set AMALGAM_HUB_SOURCES=true, and register hf:// sources",
    "VLLM_SERVER_DEV_MODE": _NOT_SERVED,
    "VLLM_ENABLE_COHERE_API": _NOT_SERVED,
    "VLLM_ENABLE_RESPONSES_API_STORE": "nothing is stored; clients send the whole conversation",
    "VLLM_LOG_STATS_INTERVAL": "numbers are on /metrics, and none are logged",
    "VLLM_USE_RUST_FRONTEND": "HTTP is served by this program",
    "VLLM_RUST_FRONTEND_PATH": "HTTP is served by this program",
}
"""By variable, it tells what holds instead."""
_OFF: Final = frozenset({"", "0", "false", "False"})


def unheeded(environment: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each variable of ``environment`` that has a value and no effect."""
    for name, instead in WITHOUT_EFFECT.items():
        if environment.get(name, "") not in _OFF:
            yield f"{name} has no effect here: {instead}."
