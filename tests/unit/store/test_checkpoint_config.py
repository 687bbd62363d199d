"""What a base model's config says before a weight is looked at: how it is quantised, and in what it is computed."""

import json
from pathlib import Path
from typing import Any

import pytest

from amalgam.store.checkpoint_tensors import is_quantised, needs_sixteen_bits, quantization_of

HOW = {"quant_method": "gptq"}


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({}, None),
        ({"quantization_config": None}, None),
        ({"quantization_config": HOW}, HOW),
        ({"compression_config": HOW}, HOW),
        ({"text_config": {"quantization_config": HOW}, "vision_config": {}}, HOW),
        ({"text_config": None, "quantization_config": "odd"}, {}),
    ],
)
def test_how_weights_are_quantised_is_found_wherever_it_is_said(
    config: dict[str, Any], found: dict[str, Any] | None, tmp_path: Path
) -> None:
    assert quantization_of(config) == found
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert is_quantised(tmp_path) == (found is not None)
    assert needs_sixteen_bits(tmp_path) == (found is not None)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"]}, False),
        ({"layer_types": ["linear_attention", "full_attention"]}, True),
        ({"text_config": {"layer_types": ["linear_attention"]}}, True),
        ({"layer_types": None}, False),
    ],
)
def test_layers_of_linear_attention_are_computed_in_sixteen_bits(
    config: dict[str, Any], expected: bool, tmp_path: Path
) -> None:
    assert not needs_sixteen_bits(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert needs_sixteen_bits(tmp_path) == expected
