"""Drafts that a model reads: as it would read them row by row, and with the answers that it gives alone."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from loadtests.skill_reading import DraftReader
from tests.support.reading_base import write_reading_base

END = 7
BEGIN = [3, 9, 4]
PROMPTS = [[*BEGIN, 20], [*BEGIN, 30, 31, 32, 33], [*BEGIN, 5, 6], *([*BEGIN, 40 + at] for at in range(10))]
LONGEST = 9


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    folder: Path = write_reading_base(tmp_path_factory.mktemp("base"), torch.float32)
    found: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return found


def answered(model: torch.nn.Module, prompt: list[int], end: int) -> list[int]:
    """The greedy answer, one pass a token."""
    found: list[int] = []
    while len(found) < LONGEST and end not in found:
        with torch.no_grad():
            found.append(int(model(torch.tensor([[*prompt, *found]])).logits[0, -1].argmax()))
    return found


@pytest.mark.parametrize("ends", [False, True])
def test_answers_are_those_that_the_model_gives_alone(model: torch.nn.Module, ends: bool) -> None:
    end = answered(model, PROMPTS[1], END)[4] if ends else END
    alone = [answered(model, prompt, end) for prompt in PROMPTS]
    assert not ends or min(map(len, alone)) < LONGEST
    departs = [min(at, len(answer) - 1) for at, answer in zip([0, 3, 1] * 5, alone, strict=False)]
    wrong = [[*answer[:at], (answer[at] + 1) % 256, 8] for at, answer in zip(departs, alone, strict=True)]
    nothing: list[list[int]] = [[] for _ in alone]
    for drafts in (nothing, alone, wrong, [one[:2] for one in alone], [*alone[:5], *wrong[5:]]):
        found = DraftReader(model, end).read(PROMPTS, drafts, LONGEST)
        assert [list(one.answer) for one in found] == alone
    assert [one.alike for one in DraftReader(model, end).read(PROMPTS, wrong, 0)] == departs


def test_drafts_are_as_likely_as_row_by_row(model: torch.nn.Module) -> None:
    drafts = [list(range(50, 50 + 1 + at % 6)) for at in range(len(PROMPTS))]
    found = DraftReader(model, END).read(PROMPTS, drafts, 0)
    for one, prompt, draft in zip(found, PROMPTS, drafts, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *draft]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert one.nats == pytest.approx(float(logits.gather(1, torch.tensor(draft)[:, None]).sum()), abs=1e-3)
        assert one.agreed == int((logits.argmax(-1) == torch.tensor(draft)).sum())
        assert one.answer == ()
