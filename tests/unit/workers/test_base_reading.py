"""What the base model's modules are given at the end of prompts, on a Llama of four layers that reads bytes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.hooks import RemovableHandle
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from amalgam.errors.adapters import BaseModelUnreadable
from amalgam.errors.aliases import PromptsUnread
from amalgam.kernels.row_energy import row_basis, row_energy
from amalgam.store.meta_model import meta_shapes
from amalgam.workers import base_reading
from amalgam.workers.base_reading import BaseReading, energies
from amalgam.workers.loaded_base import MOST_TOKENS
from tests.support.reading_base import write_reading_base

LAST, EARLIER, HEAD = "model.layers.3.mlp.down_proj", "model.layers.2.mlp.down_proj", "lm_head"
QUERY = "model.layers.3.self_attn.q_proj"
DISAGREEING = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "num_attention_heads": 32,
}
PROMPTS = ["How many users are there?", "a", "Turn this into JSON, please: Ann is 34", "", "x" * 60]
ROUNDING = 0.05
"""Of bfloat16, over rows that are padded and rows that are not; values are about 1."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reading_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def reading(folder: Path) -> BaseReading:
    return BaseReading(folder)


def alone(folder: Path, text: str, module: str) -> torch.Tensor:
    """What a module is given last, in a pass over one text as it is."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    seen: list[torch.Tensor] = []
    model.get_submodule(module).register_forward_pre_hook(lambda _, given: seen.append(given[0][0, -1].float()))
    with torch.inference_mode():
        model(input_ids=torch.tensor([tokenizer(text)["input_ids"]]))
    return seen[0]


@pytest.mark.parametrize("size", [1, 2, 8])
def test_a_batch_gives_what_a_pass_over_each_alone_gives(
    reading: BaseReading, folder: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(base_reading, "BATCH", size)
    found = reading.inputs(PROMPTS, [LAST, QUERY])
    for module in (LAST, QUERY):
        assert found[module].shape[0] == len(PROMPTS)
        for place, prompt in enumerate(PROMPTS):
            expected = alone(folder, f"<{prompt}>:", module)
            torch.testing.assert_close(found[module][place], expected, rtol=ROUNDING, atol=ROUNDING)


def test_of_a_long_prompt_both_ends_are_read(reading: BaseReading) -> None:
    tokens = reading.tokens("begin" + "y" * 5000 + "end")
    text = "".join(map(chr, tokens))
    assert len(tokens) == MOST_TOKENS
    assert tokens[:6] == reading.tokens("begin")[:6]
    assert tokens[-5:] == reading.tokens("end")[-5:]
    assert len(set(text)) > 3


def test_without_a_template_the_text_is_read_as_it_is(tmp_path: Path) -> None:
    folder = write_reading_base(tmp_path, template=None)
    assert BaseReading(folder).tokens("ab") == list(PreTrainedTokenizerFast.from_pretrained(folder)("ab")["input_ids"])


def test_the_last_quarter_of_the_layers_is_looked_at(reading: BaseReading) -> None:
    assert reading.late_modules([QUERY, LAST, EARLIER, HEAD, "model.embed_tokens", "other.layers.3.x"]) == [LAST, QUERY]


def test_energies_are_means_over_an_adapters_own_late_modules(reading: BaseReading) -> None:
    torch.manual_seed(3)
    a, b, c = torch.randn(4, 64), torch.randn(2, 32), torch.randn(3, 64)
    found = energies(reading, {"one": {LAST: a, QUERY: b, EARLIER: c}, "two": {LAST: c}}, PROMPTS)
    given = reading.inputs(PROMPTS, [LAST, QUERY])
    one = (row_energy(given[LAST], row_basis(a)) + row_energy(given[QUERY], row_basis(b))) / 2
    expected = torch.stack([one, row_energy(given[LAST], row_basis(c))], dim=1)
    torch.testing.assert_close(torch.tensor(found), expected)


def test_an_adapter_without_late_modules_is_refused(reading: BaseReading) -> None:
    with pytest.raises(PromptsUnread, match="'two' changes no linear layer"):
        energies(reading, {"one": {LAST: torch.ones(1, 64)}, "two": {EARLIER: torch.ones(1, 64)}}, PROMPTS)


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> list[RemovableHandle]:
    """Every hook that is put on a module."""
    found: list[RemovableHandle] = []
    put = torch.nn.Module.register_forward_pre_hook

    def noted(module: torch.nn.Module, *given: Any, **named: Any) -> RemovableHandle:
        found.append(put(module, *given, **named))
        return found[-1]

    monkeypatch.setattr(torch.nn.Module, "register_forward_pre_hook", noted)
    return found


def still_there(hooks: list[RemovableHandle]) -> list[int]:
    return [hook.id for hook in hooks if hook.id in (hook.hooks_dict_ref() or ())]


def test_it_stops_between_batches_and_leaves_no_hook(
    reading: BaseReading, hooks: list[RemovableHandle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_reading, "BATCH", 2)
    asked = iter([False, True])
    with pytest.raises(PromptsUnread, match="longer than is allowed"):
        reading.inputs(PROMPTS, [LAST], lambda: next(asked))
    assert next(asked, "all were asked") == "all were asked"
    assert len(hooks) == 1
    assert still_there(hooks) == []


def test_a_module_that_the_pass_does_not_use_is_refused(reading: BaseReading, hooks: list[RemovableHandle]) -> None:
    with pytest.raises(PromptsUnread, match="does not use lm_head"):
        reading.inputs(PROMPTS, [LAST, HEAD])
    assert len(hooks) == 2
    assert still_there(hooks) == []


def test_a_library_that_the_model_needs_and_that_is_missing_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("a quantiser")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", missing)
    with pytest.raises(PromptsUnread, match="does not read the base model: ImportError"):
        BaseReading(folder)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptsUnread, match="transformers does not read the base model"):
        BaseReading(tmp_path)


def test_a_config_that_a_check_of_transformers_refuses_is_refused(tmp_path: Path) -> None:
    """Its class of errors is none of Python's own."""
    (tmp_path / "config.json").write_text(json.dumps(DISAGREEING))
    with pytest.raises(PromptsUnread, match="transformers does not read the base model"):
        BaseReading(tmp_path)
    with pytest.raises(BaseModelUnreadable, match="does not say the shapes"):
        meta_shapes(tmp_path)
