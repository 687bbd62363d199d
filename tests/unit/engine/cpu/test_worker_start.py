"""What a worker on CPU does when it begins, after what vLLM does there, and in no other process."""

import os

import pytest

from amalgam.engine.cpu import patches, worker_start


def test_a_worker_keeps_its_memory_and_leaves_experts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []

    class Platform:
        @classmethod
        def register_triton_kernel_overrides(cls) -> None:
            done.append(cls)

    original = Platform.register_triton_kernel_overrides
    monkeypatch.setattr(worker_start, "keep_freed_memory", done.append)
    monkeypatch.setattr(patches, "apply", done.append)
    monkeypatch.setattr(Platform, "register_triton_kernel_overrides", worker_start.beginning(original))
    assert done == []
    Platform.register_triton_kernel_overrides()
    assert done == [Platform, os.environ, "experts"]
