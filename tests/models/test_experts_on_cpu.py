"""Routed experts on CPU with LoRA on: vLLM's own choice of their kernel ends a CPU engine at its first step."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.tiny_models import FAMILIES, write_model

pytestmark = pytest.mark.slow

ROUNDING = 1e-5
"""Relative: both sum in float32, in another order."""


@pytest.mark.parametrize("family", [name for name, row in FAMILIES.items() if row.experts])
def test_experts_answer_as_in_transformers_and_lora_is_beside_them(family: str, tmp_path: Path) -> None:
    write_model(family, tmp_path)
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(root), str(root / "server"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(root / "tests" / "models" / "experts_program.py"), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": path, "VLLM_CPU_KVCACHE_SPACE": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = dict(line.split("=") for line in done.stdout.splitlines() if line.startswith(("difference=", "wrapped=")))
    assert float(said["difference"]) < ROUNDING
    names = set(said["wrapped"].split(","))
    assert {"qkv_proj", "o_proj"} <= names
    assert not names & {"experts", "gate", "shared_expert_gate"}
