"""What vLLM finds in its environment where nobody has said otherwise."""

import os
from pathlib import Path

import pytest

from amalgam.engine import environment
from amalgam.engine.environment import free_memory, kv_cache_gib, prepare_environment

GIB = 1 << 30
SYSTEM = "MemTotal:       24000000 kB\nMemFree:         1000000 kB\nMemAvailable:   20971520 kB\nBuffers: 5 kB\n"


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """20 GiB are to be had, of which most are filled with files now."""
    path = tmp_path / "meminfo"
    path.write_text(SYSTEM)
    return path


@pytest.fixture
def group(tmp_path: Path) -> Path:
    """A control group without a limit."""
    folder = tmp_path / "group"
    folder.mkdir()
    (folder / "memory.max").write_text("max\n")
    (folder / "memory.current").write_text(f"{GIB}\n")
    return folder


def test_memory_is_free_that_files_would_make_room_for(system: Path, group: Path, tmp_path: Path) -> None:
    assert free_memory(system, group) == 20 * GIB
    assert free_memory(system, tmp_path / "no group") == 20 * GIB


@pytest.mark.parametrize(("limit", "free"), [(6, 5), (100, 20), (1, 0)])
def test_a_container_has_what_its_limit_leaves(limit: int, free: int, system: Path, group: Path) -> None:
    (group / "memory.max").write_text(f"{limit * GIB}\n")
    assert free_memory(system, group) == free * GIB


def test_elsewhere_than_on_linux_nothing_is_known(tmp_path: Path) -> None:
    assert free_memory(tmp_path / "none", tmp_path / "none") == 0


@pytest.mark.parametrize(
    ("free_gib", "want"), [(0, 1), (8, 1), (15.9, 1), (16, 2), (22, 2), (40, 5), (64, 8), (1000, 8)]
)
def test_the_kv_cache_takes_a_part_of_what_is_free(free_gib: float, want: int) -> None:
    assert kv_cache_gib(int(free_gib * GIB)) == want


def test_defaults_leave_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"VLLM_CPU_OMP_THREADS_BIND": "0-3"})
    monkeypatch.setattr(environment, "free_memory", lambda: 30 * GIB)
    prepare_environment()
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "0-3"
    assert os.environ["VLLM_CPU_KVCACHE_SPACE"] == "3"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "12"
    prepare_environment()
    assert os.environ["VLLM_CPU_KVCACHE_SPACE"] == "12"
