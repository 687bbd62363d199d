"""Changes that would overflow in the model are refused with their size; what people train and blend is not."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from amalgam.domain.adapter import BaseModelSpec
from amalgam.domain.delta_bound import MAX_DELTA_RATIO, DeltaBound
from amalgam.settings import Settings
from amalgam.store.base_model import base_spec
from amalgam.store.base_norms import SampledRms, delta_bound
from amalgam.store.checkpoint_tensors import checkpoint_tensors
from amalgam.store.delta_norm import delta_norm
from amalgam.store.peft_folder import read_peft_folder
from amalgam.store.safetensors_header import read_header
from tests.adapter_factory import encode_safetensors, write_lora
from tests.unit.store.peft_faults import Q0, only, reconfigure
from tests.unit.store.tiny_base import HIDDEN, fitting_adapter, tiny_spec

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def base(tmp_path: Path) -> BaseModelSpec:
    """Its weights are ones, so a linear module's norm is the root of the number of its entries."""
    return tiny_spec(tmp_path / "base")


def with_std(folder: Path, std: float, **changes: object) -> Path:
    return fitting_adapter(folder, std=std, **changes)


def test_the_setting_starts_at_the_bound() -> None:
    assert Settings().adapters.max_delta_ratio == MAX_DELTA_RATIO


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("factor", [1e3, 1e12, 1e18], ids=["thousand", "trillion", "near the end"])
def test_finite_but_enormous_factors_are_refused(
    tmp_path: Path, base: BaseModelSpec, dtype: str, factor: float
) -> None:
    found = read_peft_folder(with_std(tmp_path / "a", 0.02 * factor, dtype=dtype), base)
    assert {error.code for error in found.errors} == {"delta_too_large"}
    assert found.errors[0].module == Q0


def test_so_are_they_where_nothing_is_known_of_the_base(tmp_path: Path) -> None:
    only(read_peft_folder(with_std(tmp_path / "a", 0.02e12), None), "delta_too_large")


@pytest.mark.parametrize("alpha", [1e9, 9e29, -9e29], ids=str)
def test_small_factors_with_an_enormous_scale_are_refused(tmp_path: Path, base: BaseModelSpec, alpha: float) -> None:
    folder = reconfigure(fitting_adapter(tmp_path / "adapter"), lora_alpha=alpha)
    only(read_peft_folder(folder, base), "delta_too_large")


def test_one_enormous_factor_is_refused_though_the_other_makes_up_for_it(tmp_path: Path, base: BaseModelSpec) -> None:
    """In half precision its entries are infinities, whatever the product."""
    folder = tmp_path / "a"
    fitting_adapter(folder)
    write_pair(folder, np.full((1, HIDDEN), 1e6), np.full((HIDDEN, 1), 1e-9))
    only(read_peft_folder(folder, base), "delta_too_large")


def write_pair(folder: Path, down: np.ndarray, up: np.ndarray) -> Path:
    """One module's factors, rank and alpha 1, in the folder of an adapter."""
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{name}.lora_A.weight": down.astype(np.float32),
        f"{name}.lora_B.weight": up.astype(np.float32),
    }
    (folder / WEIGHTS).write_bytes(encode_safetensors(tensors, "float32"))
    return reconfigure(folder, r=down.shape[0], lora_alpha=down.shape[0], target_modules=["q_proj"])


def exact_ratio(down: np.ndarray, up: np.ndarray) -> float:
    """Against a weight of ones."""
    return float(np.linalg.norm(up @ down) / math.sqrt(up.shape[0] * down.shape[1]))


@pytest.mark.parametrize(("share", "is_refused"), [(0.99, False), (1.01, True)])
def test_the_bound_is_the_norm_of_the_product(
    tmp_path: Path, base: BaseModelSpec, share: float, is_refused: bool
) -> None:
    """Not an estimate of it: the largest entries alone would say ten times as much."""
    random = np.random.default_rng(1)
    down, up = random.standard_normal((4, HIDDEN)), random.standard_normal((HIDDEN, 4))
    up *= share * MAX_DELTA_RATIO / exact_ratio(down, up)
    fitting_adapter(tmp_path / "a")
    found = read_peft_folder(write_pair(tmp_path / "a", down, up), base)
    assert bool(found.errors) is is_refused
    if is_refused:
        only(found, "delta_too_large")
        assert "101 times" in found.errors[0].message


def test_factors_that_cancel_are_small(tmp_path: Path, base: BaseModelSpec) -> None:
    down = np.vstack([np.full((1, HIDDEN), 1e3), np.full((1, HIDDEN), 1e3)])
    up = np.hstack([np.full((HIDDEN, 1), 1e3), np.full((HIDDEN, 1), -1e3)])
    up[0, 0] += 0.1
    fitting_adapter(tmp_path / "a")
    assert read_peft_folder(write_pair(tmp_path / "a", down, up), base).errors == ()


@pytest.mark.parametrize("std", [0.02, 0.2, 1.0])
def test_what_people_train_is_not_refused(tmp_path: Path, base: BaseModelSpec, std: float) -> None:
    assert read_peft_folder(with_std(tmp_path / "a", std), base).findings == ()


def test_without_a_bound_nothing_is_refused(tmp_path: Path, base: BaseModelSpec) -> None:
    free = replace(base, delta_bound=DeltaBound(math.inf))
    assert read_peft_folder(with_std(tmp_path / "a", 0.02e12), free).findings == ()


@pytest.mark.parametrize("ratio", [math.nan, math.inf, 100.5])
def test_what_is_no_number_is_not_allowed(ratio: float) -> None:
    assert not DeltaBound().allows(ratio)
    assert not DeltaBound().allows_entry(ratio * 1e6)


def test_the_norm_needs_no_product(tmp_path: Path) -> None:
    folder = write_lora(tmp_path, layers=1, modules=["down_proj"], rank=8, dtype="float32", std=1.0)
    spans = {name.split(".")[-2]: span for name, span in read_header(folder / WEIGHTS).items()}
    raw = (folder / WEIGHTS).read_bytes()
    a, b = (
        np.frombuffer(raw[spans[f].start : spans[f].end], np.float32).reshape(spans[f].shape).astype(np.float64)
        for f in ("lora_A", "lora_B")
    )
    assert delta_norm(folder / WEIGHTS, spans["lora_A"], spans["lora_B"]) == pytest.approx(np.linalg.norm(b @ a))


class TestTheBaseWeights:
    """Sampled, so the size is known to a few parts in a hundred, for a bound that has thousands to spare."""

    def weights(self, folder: Path, make: Callable[[tuple[int, int]], np.ndarray], dtype: str = "bfloat16") -> Path:
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "llama"}')
        tensors = {"a.weight": make((400, 300)).astype(np.float32), "norm.weight": np.ones(300, np.float32)}
        (folder / "model.safetensors").write_bytes(encode_safetensors(tensors, dtype))  # type: ignore[arg-type]
        return folder

    def sampled(self, folder: Path, module: str = "a") -> float | None:
        tensors = checkpoint_tensors(folder)
        assert tensors is not None
        return SampledRms(folder, tensors)(module)

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
    def test_the_size_of_entries(self, tmp_path: Path, dtype: str) -> None:
        random = np.random.default_rng(0)
        folder = self.weights(tmp_path / "m", lambda shape: 0.05 * random.standard_normal(shape), dtype)
        assert self.sampled(folder) == pytest.approx(0.05, rel=0.05)

    def test_one_that_is_zero_in_most_rows(self, tmp_path: Path) -> None:
        def mostly_zero(shape: tuple[int, int]) -> np.ndarray:
            return np.where(np.arange(shape[0])[:, None] % 2 == 0, 1.0, 0.0) * np.ones(shape)

        assert self.sampled(self.weights(tmp_path / "m", mostly_zero)) == pytest.approx(math.sqrt(0.5), rel=0.2)

    def test_what_is_no_matrix_or_not_there_is_unknown(self, tmp_path: Path) -> None:
        folder = self.weights(tmp_path / "m", np.ones)
        assert self.sampled(folder, "norm") is None
        assert self.sampled(folder, "b") is None

    def test_a_module_that_is_all_zero_takes_adapters_all_the_same(self, tmp_path: Path) -> None:
        bound = delta_bound(self.weights(tmp_path / "m", np.zeros), 100.0)
        assert bound.ratio("a", 0.05 * math.sqrt(400 * 300), (400, 300)) == pytest.approx(50)

    def test_a_model_without_weights_at_hand_has_a_wide_bound(self, tmp_path: Path) -> None:
        assert delta_bound(None, 100.0).ratio("a", 20.0, (4, 100)) == 1.0
        assert delta_bound(tmp_path, 100.0).ratio("a", 20.0, (4, 100)) == 1.0

    def test_shards_are_read_where_they_lie(self, tmp_path: Path) -> None:
        spec = base_spec(sharded(tmp_path / "m"), "m", 16)
        assert [spec.delta_bound.weight_rms(module) for module in ("a", "b")] == [2.0, 3.0]


def sharded(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    for name, size in (("a", 2.0), ("b", 3.0)):
        tensors = {f"{name}.weight": np.full((64, 32), size, np.float32)}
        (folder / f"{name}.safetensors").write_bytes(encode_safetensors(tensors, "bfloat16"))
    index = {"weight_map": {"a.weight": "a.safetensors", "b.weight": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
