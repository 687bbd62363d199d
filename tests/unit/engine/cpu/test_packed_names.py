"""Layers that are several modules in one, and what adapters of them are called."""

from typing import Any

from amalgam.engine.cpu.packed_names import as_stored


class Glm4ForCausalLM:
    """Stands in for vLLM's class of that name."""


class LlamaForCausalLM:
    """The same of another."""


def said(_model: Any, force_2d_moe: bool = False) -> dict[str, list[str]]:
    return {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


def test_of_glm_4_gate_and_up_are_one() -> None:
    mapping = as_stored(said)
    assert mapping(Glm4ForCausalLM(), force_2d_moe=True) == said(None) | {"gate_up_proj": ["gate_up_proj"]}
    assert mapping(LlamaForCausalLM()) == said(None)


def test_vllms_own_class_says_that_they_are_two() -> None:
    """Where it no longer does, the row of the table has done its work."""
    from vllm.model_executor.models.glm4 import Glm4ForCausalLM as Theirs

    assert Theirs.packed_modules_mapping["gate_up_proj"] == ["gate_proj", "up_proj"]
