"""Tiny models that cannot be served here: the process ends with the reason in a sentence, mostly before a weight is
read.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from amalgam.engine.cpu.processor import multiplies_words
from tests.models.packings import PACKINGS, quantise
from tests.models.pictures import VOCABULARY, build, demo_tokenizer_files, family, write_processor
from tests.models.tiny_models import FAMILIES, build_row, of_vocabulary

LIMIT_S = 240
LATE = pytest.mark.skipif(not os.environ.get("AMALGAM_TEST_MODELS"), reason="run with make test-models")
CASES = {
    "gpt2": "GPT2LMHeadModel, takes no LoRA",
    "half": "weights were not initialized",
    "half spawned": "weights were not initialized",
    "gptq": "without AVX-512",
    "compressed-tensors": "without AVX-512",
    "fp8": "quantised with fp8",
    "bitsandbytes": "bitsandbytes",
    "qwen2_vl": "torchvision",
    "mistral3": "torchvision",
}

pytestmark = pytest.mark.slow


def written(case: str, folder: Path) -> None:
    folder.mkdir()
    if case in PACKINGS:
        build_row(of_vocabulary(FAMILIES["llama"], VOCABULARY)).save_pretrained(folder)
        demo_tokenizer_files(folder)
        quantise(folder, case)
    elif case.startswith("half"):
        # Of what only the process finds out that loads the weights: one layer fewer than the config says.
        build_row(of_vocabulary(FAMILIES["llama"], VOCABULARY)).save_pretrained(folder)
        demo_tokenizer_files(folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    elif case == "gpt2":
        build_row(FAMILIES["gpt2"]).save_pretrained(folder)
        demo_tokenizer_files(folder)
    else:
        build(family(case, write_processor(case, folder))).save_pretrained(folder)


@pytest.mark.parametrize("case", ["gpt2", "half", *[pytest.param(case, marks=LATE) for case in list(CASES)[2:]]])
def test_the_process_ends_with_the_reason(case: str, tmp_path: Path) -> None:
    if CASES[case] == "without AVX-512" and multiplies_words():
        pytest.skip("this processor has it")
    written(case, tmp_path / "base")
    command = [sys.executable, "-m", "amalgam", "serve", str(tmp_path / "base"), "--port", "0"]
    environment = os.environ | {"AMALGAM_STORE": str(tmp_path / "store"), "NO_COLOR": "1"}
    if case.endswith("spawned"):
        # As vLLM starts its processes on GPUs.
        environment["AMALGAM_ENGINE_START"] = "spawned"
    if CASES[case] == "torchvision":
        # In each of the server's processes as if it were not installed.
        (tmp_path / "sitecustomize.py").write_text("import sys\n\nsys.modules['torchvision'] = None\n")
        environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert ended.returncode == 1, ended.stderr[-4000:]
    said = " ".join(ended.stderr[ended.stderr.rindex("The engine did not start: ") :].split())
    said, end, _ = said.partition("Mend that and start the server again.")
    assert end, said
    assert CASES[case] in said
    assert len(said) < 600
    if not case.startswith("half"):
        assert "Loading safetensors" not in ended.stderr
