"""Base models that vLLM cannot start: the process says why in a sentence, and ends."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.running_app import write_adapter, write_base

pytestmark = pytest.mark.slow

LIMIT_S = 240


def unknown_architecture(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["FooForCausalLM"]}))


def incomplete_weights(folder: Path) -> None:
    """Known to vLLM, and found out only by the process that loads it."""
    path = folder / "config.json"
    sizes = {"num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24}
    path.write_text(json.dumps(json.loads(path.read_text()) | sizes | {"max_position_embeddings": 128}))


def no_harm(folder: Path) -> None:
    """What is wrong is a flag."""


@pytest.mark.parametrize(
    ("harm", "flags", "is_found_by_vllms_processes"),
    [(unknown_architecture, (), False), (incomplete_weights, (), True), (no_harm, ("--max-loras", "0"), False)],
)
def test_the_process_ends_with_the_reason(
    tmp_path: Path, harm: Any, flags: tuple[str, ...], is_found_by_vllms_processes: bool
) -> None:
    base = write_base(tmp_path / "base")
    path = base / "config.json"
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24}
    path.write_text(json.dumps(json.loads(path.read_text()) | sizes | {"max_position_embeddings": 128, "head_dim": 32}))
    harm(base)
    given = ("--", "--skip-tokenizer-init", *flags)
    command = [sys.executable, "-m", "amalgam", "serve", str(base), "--port", "0", *given]
    environment = os.environ | {"AMALGAM_STORE": str(tmp_path / "store"), "NO_COLOR": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    assert ended.returncode == 1, ended.stderr[-4000:]
    said = " ".join(ended.stderr[ended.stderr.rindex("The engine did not start: ") :].split())
    # Python's own tracker of shared memory may have a word after it.
    said, end, _ = said.partition("Mend that and start the server again.")
    assert end, said
    assert len(said) < 600
    assert "Traceback" not in said
    assert ("Traceback" in ended.stderr) == is_found_by_vllms_processes, ended.stderr[-4000:]
    assert "loop_failed" not in ended.stderr


def test_an_adapter_of_the_command_line_that_is_refused_is_one_sentence(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    bad = write_adapter(tmp_path / "bad", rank=99)
    flags = ("--skip-tokenizer-init", "--lora-modules", f"bad={bad}")
    command = [sys.executable, "-m", "amalgam", "serve", str(base), "--port", "0", "--", *flags]
    environment = os.environ | {"AMALGAM_STORE": str(tmp_path / "store"), "NO_COLOR": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    assert ended.returncode == 1, ended.stderr[-4000:]
    assert "Traceback" not in ended.stderr, ended.stderr[-4000:]
    [said] = [line for line in ended.stderr.splitlines() if "The adapter was refused: " in line]
    assert "rank 99" in said
