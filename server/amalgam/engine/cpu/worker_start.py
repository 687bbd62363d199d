"""What is done when a worker on CPU begins, before it builds a model."""

import functools
import os
from typing import Any

from amalgam.engine.cpu import patches
from amalgam.engine.cpu.freed_memory import keep_freed_memory


def beginning(original: Any) -> Any:
    """Stands in for `CpuPlatform.register_triton_kernel_overrides`, which a worker calls before it builds a model.

    A process that has no worker imports nothing for it.
    """
    function = original.__func__

    @functools.wraps(function)
    def begin(platform: type[Any]) -> None:
        function(platform)
        keep_freed_memory(os.environ)
        patches.apply("experts")

    return classmethod(begin)
