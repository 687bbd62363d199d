"""Folders with faults, and what is found in them: what the tests of the check share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amalgam.domain.adapter import BaseModelSpec
from amalgam.store.peft_folder import PeftFolder
from tests.adapter_factory import encode_safetensors
from tests.unit.store.tiny_base import HIDDEN, tiny_spec

Q0 = "model.layers.0.self_attn.q_proj"
PREFIX = "base_model.model."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModelSpec:
    return tiny_spec(tmp_path_factory.mktemp("base"))


def reconfigure(folder: Path, **changes: Any) -> Path:
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({field: value for field, value in config.items() if value is not ...}))
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], Any], dtype: Any = "float32") -> Path:
    """Store other tensors: ``change`` edits those of a fitting adapter in place."""
    tensors = {}
    for layer in range(2):
        for module in ("q_proj", "o_proj"):
            name = f"{PREFIX}model.layers.{layer}.self_attn.{module}"
            tensors[f"{name}.lora_A.weight"] = np.full((4, HIDDEN), 0.5, np.float32)
            tensors[f"{name}.lora_B.weight"] = np.full((HIDDEN, 4), 0.25, np.float32)
    change(tensors)
    (folder / "adapter_model.safetensors").write_bytes(encode_safetensors(tensors, dtype))
    return folder


def codes(found: PeftFolder) -> list[str]:
    return [finding.code for finding in found.findings]


def only(found: PeftFolder, code: str) -> None:
    assert set(codes(found)) == {code}, found.findings
