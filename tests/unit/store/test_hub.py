"""What of a base model's repository is fetched."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

from amalgam.store.hub import local_model

REPOSITORY = [
    "config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json",
    "consolidated.safetensors", "consolidated-00001-of-00002.safetensors", "original/consolidated.00.pth",
    "original/params.json", "model.fp16.safetensors", "onnx/config.json", "pytorch_model.bin", "modeling_x.py",
]  # fmt: skip


def test_weights_are_fetched_once_and_code_never(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fetched: list[str] = []

    def snapshot(name: str, **given: Any) -> str:
        given.pop("revision")
        fetched.extend(filter_repo_objects(REPOSITORY, **given))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert local_model("team/model") == tmp_path
    assert fetched == REPOSITORY[:4]
