"""Rivals of `iteris`: hooks add the merge that is written, the best weights stay, and shared bases project."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from amalgam.merge.sources import TensorSource
from amalgam.store.peft_folder import read_peft_folder
from amalgam.store.tensor_files import open_tensors
from loadtests.fit_rivals import Descent, WeightedInputs, descend, null_share, stacked
from loadtests.shared_bases import averaged, compressed, elected, leading, summed
from tests.adapter_factory import write_lora
from tests.support.reading_base import write_reading_base

ROW = [3, 9, 4, 20, 31, 7]
RANKS = {"one": 4, "other": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    folder: Path = write_reading_base(tmp_path_factory.mktemp("base"), torch.float32)
    found: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return found


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, TensorSource]:
    found = {}
    for seed, (name, rank) in enumerate(RANKS.items()):
        modules = ("q_proj", "down_proj") if name == "other" else ("q_proj", "up_proj", "down_proj")
        folder = write_lora(
            tmp_path_factory.mktemp(name), layers=4, hidden=32, heads_kv_dim=16, intermediate=64, rank=rank, seed=seed,
            std=0.2, modules=modules, dtype="float32",
        )  # fmt: skip
        found[name] = open_tensors(folder, read_peft_folder(folder, None).require())
    return found


def delta(source: TensorSource, module: str) -> torch.Tensor:
    a, b = source.factors(module)
    return b.float() @ a.float() * source.header.modules[module].scaling


def test_what_hooks_add_is_the_merge_that_is_written(
    model: torch.nn.Module, sources: Mapping[str, TensorSource]
) -> None:
    inputs = WeightedInputs(model, sources, 1.0)
    inputs.weights.data.uniform_(0.2, 1.4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), inputs.added():
        added = model(torch.tensor([ROW])).logits
    plain = {name: one.clone() for name, one in model.state_dict().items()}
    for module, (a, b) in inputs.factors().items():
        model.get_parameter(f"{module}.weight").data += b @ a
    with torch.no_grad():
        written = model(torch.tensor([ROW])).logits
        model.load_state_dict(plain)
        alone = model(torch.tensor([ROW])).logits
    torch.testing.assert_close(added, written, rtol=1e-4, atol=1e-4)
    assert (alone - written).abs().max() > 1e-2


def test_a_module_that_one_input_lacks_is_the_others_alone(sources: Mapping[str, TensorSource]) -> None:
    module = next(name for name in sources["one"].header.modules if name.endswith("up_proj"))
    found = stacked(module, sources)
    assert found.owners.tolist() == [0] * RANKS["one"]
    torch.testing.assert_close(found.up @ found.down, delta(sources["one"], module))


def test_the_null_share_counts_what_a_does_not_read_on_tokens_of_the_mask_alone() -> None:
    reads = torch.eye(4)[:2]
    given = torch.tensor([[[1.0, 0, 0, 0], [3.0, 0, 4.0, 0], [0, 0, 0, 1.0]]])
    assert float(null_share(given, reads, torch.tensor([[1, 1, 0]]))) == pytest.approx((0 + 16 / 25) / 2)
    assert float(null_share(given, reads, torch.tensor([[0, 0, 1]]))) == pytest.approx(1)


def test_descent_lowers_the_null_ratio_of_an_input(model: torch.nn.Module, sources: Mapping[str, TensorSource]) -> None:
    inputs = WeightedInputs(model, sources, 0.5)
    rows = {"one": [ROW, ROW[:3]], "other": [ROW[::-1]]}

    def ratio() -> float:
        with torch.no_grad():
            return sum(inputs.null_ratio(name, mine).item() for name, mine in rows.items())

    with inputs.added():
        before = ratio()
        descend(inputs.weights, rows, inputs.null_ratio, Descent(start=0.5, steps=15, rate=0.05, batch=2))
        assert ratio() < before - 1e-3


def test_the_weights_that_are_judged_best_stay() -> None:
    weights = torch.zeros(1, requires_grad=True)
    judged = iter([1.0, 0.2, 0.7])
    seen = []

    def judge() -> float:
        seen.append(weights.item())
        return next(judged)

    descend(
        weights, {"one": [3.0]}, lambda name, some: (weights - some[0]).square().sum(), Descent(0, 10, 0.1, 1), judge
    )
    assert seen[0] == 0 < seen[1] < seen[2]
    assert weights.item() == seen[1]


def test_leading_vectors_are_those_of_the_products_side_by_side() -> None:
    chance = torch.Generator().manual_seed(1)
    columns = [torch.randn(9, rank, generator=chance) for rank in (3, 2)]
    rows = [torch.randn(rank, 7, generator=chance) for rank in (3, 2)]
    whole = torch.cat([c @ r for c, r in zip(columns, rows, strict=True)], dim=1)
    wanted = torch.linalg.svd(whole, full_matrices=False).U[:, :3]
    torch.testing.assert_close((leading(columns, rows, 3).mT @ wanted).abs(), torch.eye(3), rtol=0, atol=1e-4)


def test_bases_of_one_input_lose_nothing_and_of_two_what_does_not_fit(sources: Mapping[str, TensorSource]) -> None:
    alone = compressed({"one": sources["one"]}, averaged)
    both = compressed(sources, summed)
    for module in sources["other"].header.modules:
        a, b = alone[module]
        torch.testing.assert_close(b @ a, delta(sources["one"], module), rtol=1e-4, atol=1e-5)
        a, b = both[module]
        assert a.shape[0] == b.shape[1] == max(RANKS.values())
        whole = sum((delta(one, module) for one in sources.values()), start=torch.zeros(()))
        assert float((b @ a * (whole - b @ a)).sum()) == pytest.approx(0, abs=1e-3), "it is the sum's projection"
        assert 0 < (b @ a - whole).norm() < whole.norm()


def test_ties_in_the_bases_keeps_the_largest_and_averages_what_agrees() -> None:
    inputs = torch.zeros(2, 5, 2)
    inputs[0, 0, 0], inputs[0, 1, 1], inputs[0, 4, 0] = 3.0, -2.0, 0.5
    inputs[1, 0, 0], inputs[1, 1, 1], inputs[1, 4, 0] = 1.0, 1.5, 0.1
    found = elected(inputs)
    assert found[0, 0] == 2.0
    assert found[1, 1] == -2.0
    assert found[4, 0] == 0
