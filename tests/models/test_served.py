"""Tiny models in a real server: base and adapter answer as transformers and PEFT do.

Each starts a server of its own, so they run with ``make test-models`` alone.
"""

import os
from pathlib import Path

import pytest
import transformers

from amalgam.engine.cpu.processor import multiplies_words
from tests.models.more_models import MORE
from tests.models.packings import is_packed, quantise, rounded
from tests.models.pictures import VOCABULARY, demo_tokenizer_files
from tests.models.served import apart, completed, difference, expected, serving
from tests.models.tiny_models import FAMILIES, build_row, of_vocabulary, write_adapter

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not os.environ.get("AMALGAM_TEST_MODELS"), reason="a server each; run with make test-models"),
]

IN_WORDS = pytest.mark.skipif(not multiplies_words(), reason="a processor without AVX-512: see test_not_served.py")
EXACT = 1e-4
"""Nats, in float32: sums in another order."""
QUANTISED = 0.05
"""Nats: activations are bfloat16, or rounded to eight bits, while they are multiplied; the reference rounds the weights
alone, and multiplies in float32."""


@pytest.mark.parametrize("family", ["olmoe", "mixtral", "qwen2_moe"])
def test_experts_are_served_with_adapters_of_the_attention(family: str, tmp_path: Path) -> None:
    row = of_vocabulary(FAMILIES[family], VOCABULARY)
    model = build_row(row)
    model.save_pretrained(tmp_path / "base")
    demo_tokenizer_files(tmp_path / "base")
    base = expected(model)
    adapted = expected(write_adapter(model, tmp_path / "sources" / "a", list(row.attention), seed=1))
    assert apart(base, adapted) > 10 * EXACT
    with serving(tmp_path, {"a": tmp_path / "sources" / "a"}, "--dtype", "float32") as server:
        assert difference(completed(server, "base"), base) < EXACT
        assert difference(completed(server, "a"), adapted) < EXACT


def test_a_layer_that_checkpoints_have_as_one_takes_adapters(tmp_path: Path) -> None:
    """GLM-4's gate and up, which vLLM's class takes for two modules."""
    model = build_row(of_vocabulary(MORE["glm4"], VOCABULARY))
    model.save_pretrained(tmp_path / "base")
    demo_tokenizer_files(tmp_path / "base")
    base = expected(model)
    adapted = expected(write_adapter(model, tmp_path / "sources" / "a", ["gate_up_proj", "q_proj"], seed=1))
    assert apart(base, adapted) > 10 * EXACT
    with serving(tmp_path, {"a": tmp_path / "sources" / "a"}, "--dtype", "float32") as server:
        assert difference(completed(server, "base"), base) < EXACT
        assert difference(completed(server, "a"), adapted) < EXACT


@pytest.mark.parametrize(
    "method", [*(pytest.param(name, marks=IN_WORDS) for name in ("gptq", "awq", "compressed-tensors")), "w8a8"]
)
def test_quantised_models_are_served_with_adapters(method: str, tmp_path: Path) -> None:
    row = of_vocabulary(FAMILIES["llama"], VOCABULARY)
    model = build_row(row)
    model.save_pretrained(tmp_path / "base")
    demo_tokenizer_files(tmp_path / "base")
    quantise(tmp_path / "base", method)
    for name, weight in model.state_dict().items():
        if is_packed(name, weight):
            weight.copy_(rounded(method, weight))
    base = expected(model)
    adapted = expected(write_adapter(model, tmp_path / "sources" / "a", "all-linear", seed=1))
    assert apart(base, adapted) > 2 * QUANTISED
    with serving(tmp_path, {"a": tmp_path / "sources" / "a"}) as server:
        assert difference(completed(server, "base"), base) < QUANTISED
        served = completed(server, "a")
        assert difference(served, adapted) < QUANTISED
        body = {"name": "plain", "expression": "a", "dequantize": True, "dtype": "float32"}
        with server.admin() as admin:
            made = admin.post("/admin/v1/exports", params={"wait_s": 60}, json=body)
    assert made.status_code == 201, made.text
    assert made.json()["dequantized"]
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exports" / "plain").eval()
    assert difference(served, expected(plain)) < QUANTISED
    assert apart(expected(plain), adapted) < EXACT
