"""Triton decides on import whether kernels are interpreted, so these tests run in a process of their own."""

import importlib
import os
from typing import Any

import pytest

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


@pytest.fixture(scope="session")
def triton_tiles() -> Any:
    """The module of Triton kernels, interpreted: the same code, on a processor."""
    pytest.importorskip("triton")
    return importlib.import_module("amalgam.kernels.triton_backend")


@pytest.fixture(scope="session")
def selection() -> Any:
    """The module that counts with Triton kernels, interpreted likewise."""
    pytest.importorskip("triton")
    return importlib.import_module("amalgam.kernels.triton_selection")
