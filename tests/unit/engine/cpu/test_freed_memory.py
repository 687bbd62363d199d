"""What a worker has freed it uses again, and asks the system for no page a second time."""

import os
import subprocess
import sys

import pytest

STEPS = """
import ctypes, os, resource
from amalgam.engine.cpu.freed_memory import keep_freed_memory

library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]

def step():
    # As layers do: a large output, another one beside it, and both are gone.
    for size in (25, 12, 40):
        blocks = [library.malloc(some) for some in (size << 20, size << 19)]
        for block, some in zip(blocks, (size << 20, size << 19)):
            ctypes.memset(block, 1, some)
        for block in blocks:
            library.free(block)

taken = keep_freed_memory(os.environ)
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(taken, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 5 * (25 + 12 + 40) * 1.5 * 256
"""Of what all steps write to."""


def steps(**variables: str) -> tuple[str, int]:
    """Whether the allocator was told, and pages that were mapped anew after the first step."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment.pop("LD_PRELOAD", None)
    said = subprocess.run(
        [sys.executable, "-c", STEPS], env=environment | variables, capture_output=True, text=True, check=True
    )
    taken, faults = said.stdout.split()
    return taken, int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the setting is of glibc")
def test_no_page_is_mapped_a_second_time() -> None:
    taken, faults = steps()
    assert taken == "True"
    assert faults < PAGES / 100


def test_who_has_set_the_allocator_has_decided() -> None:
    taken, faults = steps(MALLOC_MMAP_THRESHOLD_="131072")
    assert taken == "False"
    assert faults > PAGES / 2
