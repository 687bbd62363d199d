"""Every reason to refuse an adapter, each with a folder that really has the fault."""

import dataclasses
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import LoraConfig

from amalgam.domain.adapter import BaseModelSpec
from amalgam.errors.adapters import InvalidAdapter
from amalgam.store import peft_folder
from amalgam.store.file_rules import MAX_TEXT_BYTES
from amalgam.store.peft_folder import KEPT_EXPRESSIONS, read_peft_folder
from tests.adapter_factory import ALL_MODULES
from tests.unit.store.peft_faults import PREFIX, Q0, base, codes, only, reconfigure, rewrite
from tests.unit.store.tiny_base import HIDDEN, VOCABULARY, fitting_adapter

__all__ = ["base"]  # a fixture


def test_a_fitting_adapter_has_no_findings(base: BaseModelSpec, tmp_path: Path) -> None:
    found = read_peft_folder(fitting_adapter(tmp_path), base)
    assert found.findings == ()
    header = found.require()
    assert len(header.modules) == 14
    assert header.rank == 4
    down = header.modules["model.layers.1.mlp.down_proj"]
    assert (down.in_features, down.out_features, down.rank, down.scaling, down.dtype) == (24, 16, 4, 2.0, "BF16")
    assert header.weight_bytes == sum(2 * m.rank * (m.in_features + m.out_features) for m in header.modules.values())


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_precisions_are_fine(dtype: str, base: BaseModelSpec, tmp_path: Path) -> None:
    assert read_peft_folder(fitting_adapter(tmp_path, dtype=dtype), base).findings == ()


@pytest.mark.parametrize(("targets", "beyond"), [
    ("all-linear", None), (None, None), (["nonsense"], "14 modules have"), (r".*\.q_proj", "12 modules have"),
    (r"(?!x).*\.q_proj", None), ([*ALL_MODULES[1:], "layers.0.self_attn.q_proj"], "1 module has"),
])  # fmt: skip
def test_the_tensors_say_what_is_adapted_and_a_config_that_names_less_is_said(
    targets: Any, beyond: str | None, base: BaseModelSpec, tmp_path: Path
) -> None:
    found = read_peft_folder(reconfigure(fitting_adapter(tmp_path), target_modules=targets), base)
    assert codes(found) == ([] if beyond is None else ["modules_not_named"])
    assert all(finding.message.startswith(beyond or "") for finding in found.findings)
    assert len(found.require().modules) == 14


def test_keys_without_peft_prefix_are_fine(base: BaseModelSpec, tmp_path: Path) -> None:
    def strip(tensors: dict[str, np.ndarray]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix(PREFIX)] = tensors.pop(name)

    assert Q0 in read_peft_folder(rewrite(fitting_adapter(tmp_path), strip), base).require().modules


class TestScaling:
    def test_rslora(self, base: BaseModelSpec, tmp_path: Path) -> None:
        header = read_peft_folder(reconfigure(fitting_adapter(tmp_path), use_rslora=True), base).require()
        assert header.modules[Q0].scaling == 8 / math.sqrt(4)

    def test_patterns(self, base: BaseModelSpec, tmp_path: Path) -> None:
        """q_proj of layer 0 has rank 2 and alpha 3; every o_proj has alpha 5."""

        def shrink(tensors: dict[str, np.ndarray]) -> None:
            tensors[f"{PREFIX}{Q0}.lora_A.weight"] = np.ones((2, HIDDEN), np.float32)
            tensors[f"{PREFIX}{Q0}.lora_B.weight"] = np.ones((HIDDEN, 2), np.float32)

        folder = reconfigure(
            rewrite(fitting_adapter(tmp_path), shrink),
            rank_pattern={"layers.0.self_attn.q_proj": 2},
            alpha_pattern={f"^{re.escape(Q0)}": 3, "o_proj": 5.0},
        )
        modules = read_peft_folder(folder, base).require().modules
        assert (modules[Q0].rank, modules[Q0].scaling) == (2, 1.5)
        assert modules["model.layers.0.self_attn.o_proj"].scaling == 5 / 4
        assert modules["model.layers.1.self_attn.q_proj"].scaling == 8 / 4

    def test_a_table_that_the_engine_would_compile_anew_for_every_module(
        self, base: BaseModelSpec, tmp_path: Path
    ) -> None:
        """An upload of this kind has held up every other load of an engine for ten minutes."""
        folder = fitting_adapter(tmp_path)
        table = {f"m{number}": 4 for number in range(KEPT_EXPRESSIONS)}
        assert read_peft_folder(reconfigure(folder, rank_pattern=table), base).findings == ()
        found = read_peft_folder(reconfigure(folder, rank_pattern=table, alpha_pattern={"q_proj": 8}), base)
        only(found, "invalid_config")
        assert str(KEPT_EXPRESSIONS) in found.findings[0].message

    def test_a_table_that_names_every_module_is_fine_however_many_there_are(
        self, base: BaseModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Merges with a rank for each module write both tables so."""
        monkeypatch.setattr(peft_folder, "KEPT_EXPRESSIONS", 3)
        folder = fitting_adapter(tmp_path)
        modules = read_peft_folder(folder, base).require().modules
        tables = {"rank_pattern": dict.fromkeys(modules, 4), "alpha_pattern": dict.fromkeys(modules, 8)}
        assert read_peft_folder(reconfigure(folder, **tables), base).findings == ()
        tables["alpha_pattern"]["x"] = 8
        only(read_peft_folder(reconfigure(folder, **tables), base), "invalid_config")

    def test_a_rank_that_config_and_tensors_disagree_on(self, base: BaseModelSpec, tmp_path: Path) -> None:
        only(read_peft_folder(reconfigure(fitting_adapter(tmp_path), r=8), base), "shape_mismatch")


class TestRank:
    def test_too_large(self, base: BaseModelSpec, tmp_path: Path) -> None:
        found = read_peft_folder(fitting_adapter(tmp_path, rank=17), base)
        only(found, "rank_too_large")
        assert "17" in found.findings[0].message
        assert "16" in found.findings[0].message

    def test_at_the_limit(self, base: BaseModelSpec, tmp_path: Path) -> None:
        assert read_peft_folder(fitting_adapter(tmp_path, rank=16), base).findings == ()

    def test_too_large_in_a_pattern_that_nothing_uses(self, base: BaseModelSpec, tmp_path: Path) -> None:
        """The engine refuses by what is declared."""
        only(read_peft_folder(reconfigure(fitting_adapter(tmp_path), rank_pattern={"x": 99}), base), "rank_too_large")

    def test_without_a_base_model_there_is_no_limit(self, tmp_path: Path) -> None:
        assert read_peft_folder(fitting_adapter(tmp_path, rank=99), None).require().rank == 99


UNSUPPORTED_CONFIG: list[tuple[dict[str, Any], str]] = [
    ({"use_dora": True}, "unsupported_dora"),
    ({"bias": "lora_only"}, "unsupported_bias"),
    ({"lora_bias": True}, "unsupported_bias"),
    ({"modules_to_save": ["lm_head"]}, "unsupported_modules"),
    ({"trainable_token_indices": [1]}, "unsupported_modules"),
    ({"target_parameters": ["experts.gate_up_proj"]}, "unsupported_modules"),
    ({"init_lora_weights": "pissa"}, "unsupported_init"),
    ({"init_lora_weights": "pissa_niter_16"}, "unsupported_init"),
    ({"init_lora_weights": "OLoRA"}, "unsupported_init"),
    ({"init_lora_weights": "corda"}, "unsupported_init"),
    ({"init_lora_weights": "loftq"}, "unsupported_init"),
    ({"init_lora_weights": "lora_ga"}, "unsupported_init"),
    ({"alora_invocation_tokens": [1, 2]}, "unsupported_alora"),
    ({"layer_replication": [[0, 1]]}, "unsupported_layer_replication"),
    ({"use_qalora": True}, "unsupported_variant"),
    ({"kasa_config": {"x": 1}}, "unsupported_variant"),
    ({"auto_map": {"AutoModel": "evil.Model"}}, "unsafe_format"),
]


@pytest.mark.parametrize(("change", "code"), UNSUPPORTED_CONFIG, ids=str)
def test_what_the_engine_cannot_serve(change: dict[str, Any], code: str, base: BaseModelSpec, tmp_path: Path) -> None:
    only(read_peft_folder(reconfigure(fitting_adapter(tmp_path), **change), base), code)


OF_PEFT: dict[str, Any] = {
    # Read, or without a meaning for what is trained already; None: no value makes a difference.
    **dict.fromkeys((
        "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "task_type",
        "peft_type", "r", "lora_alpha", "target_modules", "exclude_modules", "lora_dropout", "fan_in_fan_out",
        "use_rslora", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "megatron_config",
        "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size",
        "runtime_config", "ensure_weight_tying", "velora_config", "monteclora_config",
    ), None),
    # Refused by these values, as the lists above have them.
    **{field: value for change, _ in UNSUPPORTED_CONFIG for field, value in change.items() if field != "auto_map"},
    "arrow_config": {"top_k": 2},
    "use_bdlora": {"nblocks": 2},
}  # fmt: skip


def test_every_field_of_the_newest_pefts_config_is_judged(base: BaseModelSpec, tmp_path: Path) -> None:
    """A new release shows what is new: say here, and in `peft_config`, what a field means for serving."""
    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    assert fields == OF_PEFT.keys()
    for field, value in OF_PEFT.items():
        if value is not None:
            found = read_peft_folder(reconfigure(fitting_adapter(tmp_path / field), **{field: value}), base)
            assert found.errors, field
    beside = {"eva_config": {"rho": 2.0}, "corda_config": {"corda_method": "kpm"}, "velora_config": {"num_groups": 2}}
    beside |= {"loftq_config": {"loftq_bits": 4}, "ensure_weight_tying": True, "monteclora_config": {"num_samples": 2}}
    beside |= {"runtime_config": {"ephemeral_gpu_offload": True}, "exclude_modules": ["lm_head"]}
    beside |= {"layers_pattern": "layers", "layers_to_transform": [0, 1], "megatron_core": "megatron.core"}
    assert read_peft_folder(reconfigure(fitting_adapter(tmp_path / "beside"), **beside), base).findings == ()


@pytest.mark.parametrize(
    "change",
    [{"init_lora_weights": init} for init in (True, False, "gaussian", "eva", "orthogonal", "MiCA", None)]
    + [
        {"bias": None},
        {"modules_to_save": []},
        {"lora_bias": False},
        {"layer_replication": None},
        {"unknown": {"x": 1}},
    ],
    ids=str,
)
def test_what_the_engine_can_serve(change: dict[str, Any], base: BaseModelSpec, tmp_path: Path) -> None:
    assert read_peft_folder(reconfigure(fitting_adapter(tmp_path), **change), base).findings == ()


@pytest.mark.parametrize(
    "change",
    [
        {"peft_type": "IA3"},
        {"peft_type": ...},
        {"r": 0},
        {"r": "4"},
        {"r": True},
        {"lora_alpha": "8"},
        {"lora_alpha": float("nan")},
        {"lora_alpha": float("inf")},
        {"lora_alpha": 10**400},
        {"rank_pattern": {"q_proj": 0}},
        {"rank_pattern": ["q_proj"]},
        {"rank_pattern": {"(a+)+$": 4}},
        {"alpha_pattern": {"q_proj": "1"}},
        {"target_modules": [1]},
        {"base_model_name_or_path": 7},
    ],
    ids=str,
)
def test_a_config_that_is_not_clear(change: dict[str, Any], base: BaseModelSpec, tmp_path: Path) -> None:
    found = read_peft_folder(reconfigure(fitting_adapter(tmp_path), **change), base)
    only(found, "invalid_config")
    assert found.header is None


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000])
def test_a_config_that_is_no_object(text: str, base: BaseModelSpec, tmp_path: Path) -> None:
    (fitting_adapter(tmp_path) / "adapter_config.json").write_text(text)
    only(read_peft_folder(tmp_path, base), "invalid_config")


def test_a_config_of_megabytes(base: BaseModelSpec, tmp_path: Path) -> None:
    reconfigure(fitting_adapter(tmp_path), padding="x" * MAX_TEXT_BYTES)
    only(read_peft_folder(tmp_path, base), "file_too_large")


class TestModules:
    def test_names_that_the_base_model_lacks(self, base: BaseModelSpec, tmp_path: Path) -> None:
        found = read_peft_folder(fitting_adapter(tmp_path, layers=3), base)
        only(found, "unknown_modules")
        assert {finding.module for finding in found.findings} == {
            f"model.layers.2.{part}"
            for part in (
                *(f"self_attn.{m}_proj" for m in "qkvo"),
                *(f"mlp.{m}_proj" for m in ("gate", "up", "down")),
            )
        }

    def test_shapes_of_another_base_model(self, base: BaseModelSpec, tmp_path: Path) -> None:
        found = read_peft_folder(fitting_adapter(tmp_path, heads_kv_dim=12), base)
        only(found, "shape_mismatch")
        assert {finding.module for finding in found.findings} == {
            f"model.layers.{layer}.self_attn.{m}_proj" for layer in range(2) for m in "kv"
        }
        assert "[12, 16]" in found.findings[0].message
        assert "[8, 16]" in found.findings[0].message

    @pytest.mark.parametrize(
        ("factor", "shape"),
        [
            ("lora_A", (3, HIDDEN)),
            ("lora_A", (4, HIDDEN, 1)),
            ("lora_A", (HIDDEN,)),
            ("lora_A", ()),
            ("lora_B", (HIDDEN, 5)),
            ("lora_B", (0, 4)),
        ],
    )
    def test_factors_that_do_not_multiply(
        self, factor: str, shape: tuple[int, ...], base: BaseModelSpec, tmp_path: Path
    ) -> None:
        def change(tensors: dict[str, np.ndarray]) -> None:
            tensors[f"{PREFIX}{Q0}.{factor}.weight"] = np.ones(shape, np.float32)

        found = read_peft_folder(rewrite(fitting_adapter(tmp_path), change), base)
        only(found, "shape_mismatch")
        assert [finding.module for finding in found.findings] == [Q0]

    @pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
    def test_a_factor_without_its_partner(self, factor: str, base: BaseModelSpec, tmp_path: Path) -> None:
        folder = rewrite(fitting_adapter(tmp_path), lambda tensors: tensors.pop(f"{PREFIX}{Q0}.{factor}.weight"))
        found = read_peft_folder(folder, base)
        only(found, "incomplete_pair")
        assert factor in found.findings[0].message

    @pytest.mark.parametrize(
        ("name", "shape", "code"),
        [
            (f"{PREFIX}{Q0}.lora_magnitude_vector", (HIDDEN,), "unsupported_dora"),
            (f"{PREFIX}{Q0}.lora_magnitude_vector.weight", (HIDDEN,), "unsupported_dora"),
            (f"{PREFIX}{Q0}.bias", (HIDDEN,), "unsupported_bias"),
            (f"{PREFIX}{Q0}.lora_B.bias", (HIDDEN,), "unsupported_bias"),
            (f"{PREFIX}lm_head.weight", (VOCABULARY, HIDDEN + 1), "unsupported_modules"),
            (f"{PREFIX}model.embed_tokens.lora_embedding_A", (4, VOCABULARY), "unsupported_modules"),
            (f"{PREFIX}model.embed_tokens.base_layer.weight", (VOCABULARY + 1, HIDDEN), "unsupported_modules"),
            (f"{PREFIX}{Q0}.base_layer.weight", (HIDDEN, HIDDEN + 1), "unsupported_modules"),
            (f"{Q0}.lora_A.weight", (4, HIDDEN), "unknown_tensors"),
            ("lora_A.weight", (4, HIDDEN), "unknown_tensors"),
            ("x" * 600 + ".lora_A.weight", (4, HIDDEN), "unknown_tensors"),
        ],
    )
    def test_tensors_that_do_not_belong(
        self, name: str, shape: tuple[int, ...], code: str, base: BaseModelSpec, tmp_path: Path
    ) -> None:
        folder = rewrite(fitting_adapter(tmp_path), lambda tensors: tensors.update({name: np.ones(shape, np.float32)}))
        found = read_peft_folder(folder, base)
        only(found, code)
        assert all(len(finding.message) < 400 for finding in found.findings)

    def test_a_copy_of_the_embedding_is_only_a_warning(self, base: BaseModelSpec, tmp_path: Path) -> None:
        name = f"{PREFIX}model.embed_tokens.base_layer.weight"
        copy = np.ones((VOCABULARY, HIDDEN), np.float32)
        found = read_peft_folder(rewrite(fitting_adapter(tmp_path), lambda tensors: tensors.update({name: copy})), base)
        only(found, "base_weights_ignored")
        assert len(found.require().modules) == 4

    def test_factors_on_an_embedding(self, base: BaseModelSpec, tmp_path: Path) -> None:
        def change(tensors: dict[str, np.ndarray]) -> None:
            tensors[f"{PREFIX}model.embed_tokens.lora_A.weight"] = np.ones((4, HIDDEN), np.float32)
            tensors[f"{PREFIX}model.embed_tokens.lora_B.weight"] = np.ones((VOCABULARY, 4), np.float32)

        only(read_peft_folder(rewrite(fitting_adapter(tmp_path), change), base), "unsupported_modules")

    def test_long_reports_are_cut_and_counted(self, base: BaseModelSpec, tmp_path: Path) -> None:
        found = read_peft_folder(fitting_adapter(tmp_path, layers=12), base)
        assert len(found.findings) == 9
        assert "62 more" in found.findings[-1].message


class TestBaseName:
    @pytest.mark.parametrize("name", ["", None, "tiny", "org/Tiny-135M-Instruct", "/models/TINY/"])
    def test_names_that_agree_loosely(self, name: Any, base: BaseModelSpec, tmp_path: Path) -> None:
        folder = reconfigure(fitting_adapter(tmp_path), base_model_name_or_path=name)
        assert read_peft_folder(folder, base).findings == ()

    def test_another_name_with_the_same_shapes_is_a_warning(self, base: BaseModelSpec, tmp_path: Path) -> None:
        found = read_peft_folder(reconfigure(fitting_adapter(tmp_path), base_model_name_or_path="org/other"), base)
        only(found, "base_unverified")
        assert found.errors == ()
        assert found.require().base_model == "org/other"

    def test_where_shapes_differ_the_name_is_no_news(self, base: BaseModelSpec, tmp_path: Path) -> None:
        folder = reconfigure(fitting_adapter(tmp_path, layers=3), base_model_name_or_path="org/other")
        only(read_peft_folder(folder, base), "unknown_modules")


def test_all_findings_at_once_errors_first(base: BaseModelSpec, tmp_path: Path) -> None:
    """A DoRA adapter of rank 32 with a bias, a bad shape, a NaN and a pickle beside it: one report."""
    folder = reconfigure(fitting_adapter(tmp_path), use_dora=True, r=32, base_model_name_or_path="other")

    def spoil(tensors: dict[str, np.ndarray]) -> None:
        for name in list(tensors):
            rank_first = "lora_A" in name
            tensors[name] = np.ones((32, HIDDEN) if rank_first else (HIDDEN, 32), np.float32)
        tensors[f"{PREFIX}{Q0}.lora_B.weight"] = np.ones((HIDDEN + 1, 32), np.float32)
        tensors[f"{PREFIX}{Q0}.lora_B.weight"][0, 0] = np.nan
        tensors[f"{PREFIX}{Q0}.bias"] = np.ones(HIDDEN, np.float32)

    rewrite(folder, spoil)
    (folder / "README.md").write_bytes(b"\x80\x04.")
    found = read_peft_folder(folder, base)
    assert set(codes(found)) == {
        "unsafe_format",
        "unsupported_dora",
        "rank_too_large",
        "unsupported_bias",
        "shape_mismatch",
        "non_finite",
    }
    with pytest.raises(InvalidAdapter) as caught:
        found.require()
    assert caught.value.code == "unsafe_format"
    assert caught.value.findings == found.errors


def test_findings_from_elsewhere_count_the_same(base: BaseModelSpec, tmp_path: Path) -> None:
    found = read_peft_folder(fitting_adapter(tmp_path), base)
    bad = read_peft_folder(tmp_path / "nowhere", base).findings
    with pytest.raises(InvalidAdapter) as caught:
        found.require(also=bad)
    assert {finding.code for finding in caught.value.findings} == {"missing_file"}


def test_the_check_needs_no_tensor_library() -> None:
    import subprocess

    code = "import amalgam.store.peft_folder, amalgam.store.adapter_store, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
