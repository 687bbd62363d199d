"""Fits by reading, on a Llama of four layers: what is read, by whom, and what becomes of the inputs."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from amalgam.domain.adapter import AdapterHeader, ModuleHeader
from amalgam.domain.evaluation import EvaluationItem
from amalgam.domain.fit import ReadingFit
from amalgam.errors.fits import FitUnread
from amalgam.errors.merge_run import MergeCancelled
from amalgam.merge.projection import RIDGE
from amalgam.workers import reading_fit
from amalgam.workers.base_passes import BasePasses
from amalgam.workers.reading_fit import ROUNDS, Place, fitted, read_and_fit, reading_needs
from tests.support.reading_base import write_reading_base

CPU = torch.device("cpu")
Q, K, DOWN, HEAD = (
    "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj", "model.layers.2.mlp.down_proj", "lm_head",
)  # fmt: skip
SHAPES = {Q: (32, 32), K: (16, 32), DOWN: (32, 64), HEAD: (256, 32), "model.layers.9.other": (8, 32)}
PROMPTS = {"one@1": ("How many?", "List them all."), "two@1": ("As JSON: Ann is 34", "x: 1, y: 2")}


@dataclass(frozen=True)
class MadeAdapter:
    """An adapter in memory."""

    header: AdapterHeader
    tensors: Mapping[str, tuple[Tensor, Tensor]]
    digest: str = "0" * 64

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        return self.tensors[module]


def adapter(seed: int, *modules: str, rank: int = 2, size: float = 0.3) -> MadeAdapter:
    chance = torch.Generator().manual_seed(seed)
    tensors = {
        name: (
            torch.randn(rank, SHAPES[name][1], generator=chance) * size,
            torch.randn(SHAPES[name][0], rank, generator=chance) * size,
        )
        for name in modules
    }
    headers = {name: ModuleHeader(name, rank, SHAPES[name][1], SHAPES[name][0], 2.0, "F32") for name in modules}
    return MadeAdapter(AdapterHeader(headers, None, 0), tensors)


def spec(labelled: bool = False, budget_s: float = 300.0) -> ReadingFit:
    items = {
        ref: tuple(EvaluationItem(messages=({"role": "user", "content": text},), reference="yes") for text in texts)
        for ref, texts in PROMPTS.items()
    }
    return ReadingFit(items=items, labelled=labelled, max_tokens=6, budget_s=budget_s)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reading_base(tmp_path_factory.mktemp("base"), torch.float32)


def passes_over(folder: Path) -> BasePasses:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("amalgam.workers.base_passes.multiplies_bfloat16", lambda units: False)
        return BasePasses(folder, CPU)


@pytest.fixture(scope="module")
def passes(folder: Path) -> BasePasses:
    return passes_over(folder)


def given_to(passes: BasePasses, row: list[int], module: str) -> Tensor:
    seen: list[Tensor] = []
    passes.read(row, {module: lambda rows: seen.append(rows.clone())})
    return torch.cat(seen)


def never() -> bool:
    return False


def test_a_worn_adapter_adds_its_change_and_is_gone_afterwards(folder: Path, passes: BasePasses) -> None:
    one = adapter(1, Q, DOWN)
    row = passes.tokens(EvaluationItem(prompt="How many users are there?"), 0)
    before = given_to(passes, row, HEAD)
    with passes.wearing(passes.changes(one)):
        worn = given_to(passes, row, HEAD)
    dense = LlamaForCausalLM.from_pretrained(folder)
    for name, (a, b) in one.tensors.items():
        dense.get_submodule(name).weight.data += 2.0 * b @ a
    seen: list[Tensor] = []
    dense.lm_head.register_forward_pre_hook(lambda _, given: seen.append(given[0][0]))
    dense(input_ids=torch.tensor([row]))
    torch.testing.assert_close(worn, seen[0], rtol=1e-4, atol=1e-4)
    assert float((worn - before).abs().max()) > 1e-2
    torch.testing.assert_close(given_to(passes, row, HEAD), before)


def test_answers_together_are_answers_alone_and_end_where_the_model_says(passes: BasePasses, tmp_path: Path) -> None:
    rows = [passes.tokens(EvaluationItem(prompt=text), 5) for text in ("abc", "a longer question", "x")]
    together = passes.answers(rows, 5, never)
    assert together == [passes.answers([row], 5, never)[0] for row in rows]
    assert [len(one) for one in together] == [5, 5, 5]
    assert passes.answers(rows, 5, lambda: True) == []
    ending = passes_over(write_reading_base(tmp_path, torch.float32, end=together[0][2]))
    assert ending.answers(rows[:1], 5, never) == [together[0][: together[0].index(together[0][2]) + 1]]


def test_it_is_asked_before_every_token_whether_to_go_on(passes: BasePasses) -> None:
    rows = [passes.tokens(EvaluationItem(prompt="abc"), 50)]
    asked = iter([False, False, True])
    assert passes.answers(rows, 50, lambda: next(asked)) == []
    assert next(asked, "all were asked") == "all were asked"


def test_prompts_and_answers_fit_into_what_the_model_reads(tmp_path: Path) -> None:
    passes = passes_over(write_reading_base(tmp_path, torch.float32, context_tokens=40))
    found = passes.tokens(EvaluationItem(prompt="begin" + "y" * 90 + "end"), 9)
    assert len(found) == 31
    assert found[:5] == passes.tokens(EvaluationItem(prompt="begin"), 9)
    assert found[-3:] == passes.tokens(EvaluationItem(prompt="end"), 9)
    assert len(passes.text_tokens("x" * 90)) == 20


def test_a_chat_that_the_template_does_not_take_is_told(tmp_path: Path) -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "Hi"}]}
    strict = "{{ raise_exception('texts alone') }}"
    passes = passes_over(write_reading_base(tmp_path, torch.float32, template=strict))
    with pytest.raises(FitUnread, match="template does not take a prompt"):
        passes.tokens(EvaluationItem(messages=(parts,)), 0)


def test_modules_that_are_given_the_same_are_one_group(passes: BasePasses) -> None:
    row = passes.tokens(EvaluationItem(prompt="abc"), 0)
    assert passes.sharing(row, [DOWN, Q, HEAD, K]) == [[DOWN], [Q, K], [HEAD]]


def fitted_by_hand(
    passes: BasePasses, sources: Mapping[str, MadeAdapter], rows: Mapping[str, list[list[int]]]
) -> dict[str, dict[str, Tensor]]:
    """A of every module by the definition, in float64, in as many rounds as there are."""
    found = {ref: {module: a.double() for module, (a, _) in source.tensors.items()} for ref, source in sources.items()}
    for number in range(ROUNDS):
        merge = [
            MadeAdapter(source.header, {name: (found[ref][name], b) for name, (_, b) in source.tensors.items()})
            for ref, source in sources.items()
        ]
        crosses, grams = dict[tuple[str, str], Tensor](), dict[str, list[Tensor]]()
        for ref, source in sources.items():
            for module in (Q, DOWN, HEAD):
                with passes.wearing(passes.changes(source)):
                    own = torch.cat([given_to(passes, row, module) for row in rows[ref]]).double()
                with passes.wearing(passes.changes(*merge) if number else passes.changes(source)):
                    met = torch.cat([given_to(passes, row, module) for row in rows[ref]]).double()
                size = met.shape[1] / met.square().sum()
                crosses[ref, module] = own.T @ met * size
                grams.setdefault(module, []).append(met.T @ met * size)
        for ref, source in sources.items():
            for module, (a, _) in source.tensors.items():
                leader = {K: Q}.get(module, module)
                whole = torch.stack(grams[leader]).sum(dim=0)
                ridge = RIDGE * whole.diagonal().mean() * torch.eye(len(whole), dtype=torch.float64)
                aimed = crosses[ref, leader] + ridge / len(sources)
                found[ref][module] = a.double() @ aimed @ torch.linalg.inv(whole + ridge)
    return found


@pytest.mark.parametrize("workspace_bytes", [1, 1 << 30])
def test_each_input_is_projected_onto_what_it_reads_itself(passes: BasePasses, workspace_bytes: int) -> None:
    sources = {"one@1": adapter(1, Q, K, DOWN), "two@1": adapter(2, Q, HEAD)}
    found = fitted(passes, sources, spec(), CPU, workspace_bytes, never)
    rows = dict[str, list[list[int]]]()
    for ref, source in sources.items():
        with passes.wearing(passes.changes(source)):
            before = [passes.tokens(item, 6) for item in spec().items[ref]]
            rows[ref] = [[*a, *b] for a, b in zip(before, passes.answers(before, 6, never), strict=True)]
    assert (found.tokens, found.unread) == (sum(len(row) for its in rows.values() for row in its), ())
    wanted = fitted_by_hand(passes, sources, rows)
    for ref, source in sources.items():
        assert found.sources[ref].header is source.header
        for module, (_, b) in source.tensors.items():
            got_a, got_b = found.sources[ref].factors(module)
            torch.testing.assert_close(got_a.double(), wanted[ref][module], rtol=1e-3, atol=1e-4)
            assert got_b is b


class Routed:
    """A base model in which ``Q`` is an expert: how many tokens come to it depends on what is in the model."""

    def __init__(self, by_merge: int) -> None:
        self._by_merge, self._worn = by_merge, 0

    def knows(self, module: str) -> bool:
        return True

    def tokens(self, item: EvaluationItem, answer_tokens: int) -> list[int]:
        return [1, 2, 3, 4, 5]

    def answers(self, prompts: Sequence[list[int]], max_tokens: int, is_over: Callable[[], bool]) -> list[list[int]]:
        return [[] for _ in prompts]

    def sharing(self, row: Sequence[int], modules: Sequence[str]) -> list[list[str]]:
        return [[module] for module in modules]

    def changes(self, *sources: MadeAdapter) -> list[Any]:
        return [*sources]

    @contextmanager
    def wearing(self, changes: Sequence[Any]) -> Iterator[None]:
        self._worn = len(changes)
        yield

    def read(self, row: Sequence[int], watched: Mapping[str, Callable[[Tensor], object]]) -> None:
        is_merge = self._worn > 1
        chance = torch.Generator().manual_seed(7 if is_merge else 3)
        for seen in watched.values():
            if count := (self._by_merge if is_merge else 3):
                seen(torch.randn(count, 32, generator=chance))


@pytest.mark.parametrize("by_merge", [0, 2, 3, 5])
def test_tokens_of_experts_are_not_paired_with_others(by_merge: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {ref: adapter(seed, Q) for seed, ref in enumerate(PROMPTS)}

    def found() -> list[Tensor]:
        got = fitted(Routed(by_merge), sources, spec(), CPU, 1 << 30, never)  # type: ignore[arg-type]
        return [got.sources[ref].factors(Q)[0] for ref in PROMPTS]

    both = found()
    monkeypatch.setattr(reading_fit, "ROUNDS", 1)
    torch.testing.assert_close(both, found())


def test_answers_that_are_given_are_read_in_place_of_the_inputs_own(passes: BasePasses) -> None:
    found = fitted(passes, {ref: adapter(1, Q) for ref in PROMPTS}, spec(labelled=True), CPU, 1 << 30, never)
    said = [len(passes.tokens(item, 3)) + len("yes") for its in spec().items.values() for item in its]
    assert found.tokens == sum(said)


def test_modules_that_the_base_lacks_stay_as_they_are_and_are_told(passes: BasePasses) -> None:
    sources = {"one@1": adapter(1, Q, "model.layers.9.other"), "two@1": adapter(2, Q)}
    found = fitted(passes, sources, spec(), CPU, 1 << 30, never)
    assert found.unread == ("model.layers.9.other",)
    kept = found.sources["one@1"].factors("model.layers.9.other")[0]
    assert kept is sources["one@1"].factors("model.layers.9.other")[0]


def test_an_adapter_of_other_names_is_refused(passes: BasePasses) -> None:
    sources = {ref: adapter(1, "model.layers.9.other") for ref in PROMPTS}
    with pytest.raises(FitUnread, match="other names for the layers"):
        fitted(passes, sources, spec(), CPU, 1 << 30, never)


@pytest.mark.parametrize("calls", [0, 1, 3, 5])
def test_it_stops_when_it_is_told_to(passes: BasePasses, calls: int) -> None:
    asked = iter([*[False] * calls, True])
    with pytest.raises(MergeCancelled):
        fitted(passes, {ref: adapter(1, Q) for ref in PROMPTS}, spec(), CPU, 1 << 30, lambda: next(asked))


def test_time_and_memory_that_are_not_there_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {ref: adapter(1, Q) for ref in PROMPTS}
    times = iter([0.0, 2.0])
    with pytest.raises(FitUnread, match="longer than budget_s, 1 seconds"):
        read_and_fit(Place(folder, "cpu", 1 << 30), sources, spec(budget_s=1), never, lambda: next(times))
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    monkeypatch.setattr(reading_fit, "free_memory", lambda: int(size * 1.3))
    monkeypatch.setattr(reading_fit, "computed_in", lambda device: torch.bfloat16)
    needs = reading_needs(folder, "cpu")
    assert (needs.memory_bytes, needs.free_bytes) == (round(1.2 * size), int(size * 1.3))
    assert (needs.device, needs.dtype, needs.threads) == ("cpu", "bfloat16", torch.get_num_threads())
    assert needs.too_much is None
    monkeypatch.setattr(reading_fit, "computed_in", lambda device: torch.float32)
    assert reading_needs(folder, "cpu").memory_bytes == round(2.4 * size)
    with pytest.raises(FitUnread, match="GiB are free"):
        read_and_fit(Place(folder, "cpu", 1 << 30), sources, spec(), never)
    monkeypatch.setattr(reading_fit, "free_memory", lambda: 1000)
    with pytest.raises(FitUnread, match="GiB are free"):
        read_and_fit(Place(folder, "cpu", 1 << 30), sources, spec(), never)
    with pytest.raises(FitUnread, match="no folder of the base model"):
        read_and_fit(Place(None, "cpu", 1 << 30), sources, spec(), never)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FitUnread, match="transformers does not read the base model"):
        read_and_fit(Place(tmp_path, "cpu", 1 << 30), {ref: adapter(1, Q) for ref in PROMPTS}, spec(), never)


def test_a_config_that_a_check_of_transformers_refuses_is_refused(tmp_path: Path) -> None:
    """Its class of errors is none of Python's own."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 16,
        "num_attention_heads": 32,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FitUnread, match="transformers does not read the base model"):
        BasePasses(tmp_path, CPU)
