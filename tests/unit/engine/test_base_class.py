"""Base models that cannot be served here are known before a weight is read."""

from types import SimpleNamespace
from typing import Any

import pytest

from amalgam.engine.base_class import require_servable, unserved_on_cpu
from amalgam.errors.engine import BaseNotServable, BaseTakesNoLora
from tests.models.packings import CONFIGS

SERVED = ["gptq", "awq", "compressed-tensors", "w8a8"]


@pytest.mark.parametrize("method", CONFIGS)
def test_a_cpu_serves_what_it_has_kernels_for(method: str) -> None:
    assert (unserved_on_cpu(CONFIGS[method], words=True) is None) == (method in SERVED)
    found = unserved_on_cpu(CONFIGS[method], words=False)
    assert (found is None) == (method == "w8a8")
    assert (found or "").endswith("without AVX-512") == (method in SERVED and method != "w8a8")


def test_floats_of_eight_bits_are_told_whoever_packed_them() -> None:
    weights = {"num_bits": 8, "type": "float", "strategy": "tensor"}
    config = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}
    assert "compressed-tensors to floats of 8 bits" in (unserved_on_cpu(config, words=True) or "")
    for nothing in (
        None,
        {},
        {"quant_method": 5},
        {"quant_method": "compressed-tensors", "config_groups": [1]},
        "gptq",
    ):
        assert unserved_on_cpu(nothing, words=False) is None


def of_class(name: str, quantization: Any = None, context: int = 256, head: int = 64) -> Any:
    """What of vLLM's config is asked."""
    from vllm.model_executor.models.registry import ModelRegistry

    class Config:
        registry = ModelRegistry
        model_impl = "vllm"
        convert_type = "none"
        runner_type = "generate"
        hf_config = SimpleNamespace(architectures=[name], quantization_config=quantization)
        architectures = (name,)
        max_model_len = context
        use_mla = False
        skip_tokenizer_init = True

        def get_head_size(self) -> int:
            return head

    return SimpleNamespace(model_config=Config(), lora_config=object())


@pytest.fixture
def by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes are found by their names alone."""
    from vllm.model_executor.model_loader import utils

    def of(config: Any) -> Any:
        return config.registry._try_load_model_cls(config.architectures[0])

    monkeypatch.setattr(utils, "get_model_cls", of)


@pytest.mark.usefixtures("by_name")
def test_vllms_registry_says_which_classes_take_lora() -> None:
    require_servable(of_class("LlamaForCausalLM"))
    with pytest.raises(BaseTakesNoLora, match="GPT2LMHeadModel"):
        require_servable(of_class("GPT2LMHeadModel"))
    with pytest.raises(BaseNotServable, match="bitsandbytes"):
        require_servable(of_class("LlamaForCausalLM", CONFIGS["bitsandbytes"]))
    require_servable(of_class("LlamaForCausalLM", context=3))
    with pytest.raises(BaseNotServable, match="--max-model-len at least 3"):
        require_servable(of_class("LlamaForCausalLM", context=2))
    # A model without attention has no heads.
    require_servable(of_class("LlamaForCausalLM", head=0))
    with pytest.raises(BaseNotServable, match="120 entries a head, and vLLM's kernels for CPUs take 32, 64, "):
        require_servable(of_class("LlamaForCausalLM", head=120))


@pytest.mark.usefixtures("by_name")
def test_a_tokenizer_that_cannot_be_read_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm.tokenizers

    def fail(config: Any) -> None:
        raise ValueError("Expecting value: line 1")

    monkeypatch.setattr(vllm.tokenizers, "cached_tokenizer_from_config", fail)
    config = of_class("LlamaForCausalLM")
    require_servable(config)
    config.model_config.skip_tokenizer_init = False
    with pytest.raises(BaseNotServable, match="tokenizer cannot be read: Expecting value: line 1"):
        require_servable(config)


def test_a_model_that_sees_is_refused_without_torchvision_whatever_vllm_remembers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = of_class("LlamaForCausalLM")
    config.model_config.hf_config.vision_config = object()
    monkeypatch.setattr("amalgam.engine.base_class.find_spec", lambda name: None)
    with pytest.raises(BaseNotServable, match="install_torchvision"):
        require_servable(config)
