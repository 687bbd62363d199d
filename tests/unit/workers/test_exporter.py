"""Exports against dense arithmetic and transformers' own loading; what they take in memory; what their record says."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from amalgam.domain.delta_bound import DeltaBound
from amalgam.domain.export import RECORD_FILE, ExportRecord
from amalgam.errors.exports import BaseNotExportable, DiskTooSmall, ExportRankTooLarge, TiedEmbeddings
from amalgam.errors.merge_run import MergeCancelled
from amalgam.errors.merging import NonFinite
from amalgam.store import checkpoint_writer
from amalgam.store.export_folders import ExportFolders
from amalgam.store.peft_folder import read_peft_folder
from amalgam.store.tensor_files import open_tensors
from amalgam.workers.exporter import ExportOrder, lay_out_export, stage_export
from tests.adapter_factory import write_lora
from tests.export_factory import SHAPE, export, logits, order, save_base, weights

Folders = tuple[Path, Path, Path]
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    root = tmp_path_factory.mktemp("exports")
    one = write_lora(root / "one", seed=1, std=0.3, **SHAPE)
    two = write_lora(root / "two", seed=2, std=0.3, modules=("q_proj", "up_proj"), **SHAPE)
    return save_base(root / "base"), one, two


def deltas(folder: Path) -> dict[str, torch.Tensor]:
    opened = open_tensors(folder, read_peft_folder(folder, None).require())
    found = {}
    for name, module in opened.header.modules.items():
        A, B = opened.factors(name)
        found[f"{name}.weight"] = module.scaling * (B.double() @ A.double())
    return found


@pytest.mark.parametrize("block_bytes", [1, 192, 4 << 20], ids=["a row", "some rows", "whole"])
def test_it_is_base_plus_delta_rounded_once(
    folders: Folders, tmp_path: Path, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_writer, "BLOCK_BYTES", block_bytes)
    base, one, _ = folders
    record = export(order(base, str(one), max_shard_bytes=3000), tmp_path / "out")
    before, after, added = weights(base), weights(tmp_path / "out"), deltas(one)
    assert before.keys() == after.keys()
    assert record.changed_modules == len(added) == 14
    for name, tensor in before.items():
        if name not in added:
            assert torch.equal(tensor, after[name]), name
            continue
        expected = (tensor.double() + added[name]).to(torch.bfloat16)
        # In float32 a tie of bfloat16 may fall to the other side of what float64 says.
        assert (after[name].double() - expected.double()).abs().max() <= expected.abs().max() * 2**-8
        assert (after[name] == expected).float().mean() > 0.98
        assert not torch.equal(after[name], tensor)


def test_an_export_has_no_largest_rank_and_rounds_once(folders: Folders, tmp_path: Path) -> None:
    """Under a limit that serving has to cut to, and with an output type that would round the factors first."""
    base, one, two = folders
    export(order(base, f"task_arithmetic({one}, {two})", max_rank=2), tmp_path / "out")
    before, after, first, second = weights(base), weights(tmp_path / "out"), deltas(one), deltas(two)
    for name, delta in first.items():
        expected = (before[name].double() + delta + second.get(name, torch.zeros_like(delta))).to(torch.bfloat16)
        assert (after[name] == expected).float().mean() > 0.98, name
        assert (after[name].double() - expected.double()).abs().max() <= expected.abs().max() * 2**-8


DELTA = "ties({one}, {two}; density=0.5, space=delta{more})"


@pytest.mark.parametrize("more", ["", ", rank=1"])
def test_in_delta_space_too_nothing_is_cut_unless_it_was_asked_for_and_then_the_record_says_so(
    folders: Folders, tmp_path: Path, more: str
) -> None:
    """The limit of serving is below the inputs' ranks, and far below that of the merged matrices."""
    base, one, two = folders
    record = export(order(base, DELTA.format(one=one, two=two, more=more), max_rank=2), tmp_path / "out")
    assert record.added is not None
    whole = torch.linalg.matrix_rank(weights(tmp_path / "out")[Q].double() - weights(base)[Q].double())
    if more:
        assert (record.added.rank, record.added.exact_rank) == (1, 16)
        assert record.added.energy_kept is not None
        assert 0 < record.added.energy_kept < 0.9
        assert any("cut" in warning for warning in record.added.warnings)
    else:
        assert whole > 8
        assert (record.added.rank, record.added.exact_rank) == (16, 16)
        assert record.added.energy_kept == pytest.approx(1, abs=1e-5)
        assert not any("cut" in warning or "keeps" in warning for warning in record.added.warnings)


def test_what_cannot_be_held_whole_is_refused_with_the_rank_that_can(folders: Folders, tmp_path: Path) -> None:
    base, one, two = folders
    given = order(base, DELTA.format(one=one, two=two, more=""))
    small = replace(given.options, run=replace(given.options.run, max_workspace_bytes=1 << 12))
    with pytest.raises(ExportRankTooLarge, match="rank of at most") as refused:
        lay_out_export(replace(given, options=small))
    assert "16" in refused.value.message
    linear = order(base, f"{one} + {two}")
    assert lay_out_export(replace(linear, options=small)).shards


def test_the_record_of_a_sum_says_that_nothing_was_cut(folders: Folders, tmp_path: Path) -> None:
    base, one, two = folders
    for name, expression, rank in (("same", str(one), 4), ("sum", f"{one} + {two}", 8)):
        added = export(order(base, expression, max_rank=2), tmp_path / name).added
        assert added is not None
        assert (added.rank, added.exact_rank) == (rank, rank)


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_loads_it_with_the_logits_of_base_plus_delta(folders: Folders, tmp_path: Path, tied: bool) -> None:
    _, one, two = folders
    base = save_base(tmp_path / "base", tied=tied, dtype=torch.float32)
    expression = f"task_arithmetic({one}, -0.5*{two}; dtype=float32)"
    record = export(order(base, expression, max_shard_bytes=5000), tmp_path / "out")
    assert record.shard_count > 2
    by_hand = save_base(tmp_path / "by_hand", tied=tied, dtype=torch.float32)
    assert torch.equal(logits(base), logits(by_hand))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    second = deltas(two)
    for name, delta in deltas(one).items():
        module = model.get_submodule(name.removesuffix(".weight"))
        module.weight.data += (delta - 0.5 * second.get(name, torch.zeros_like(delta))).float()
    model.save_pretrained(by_hand)
    expected = logits(by_hand)
    assert (logits(tmp_path / "out") - expected).abs().max() < 1e-4
    assert (expected - logits(base)).abs().max() > 0.1


def test_dtypes_configs_and_the_other_files(folders: Folders, tmp_path: Path) -> None:
    base, one, _ = folders
    export(order(base, str(one), dtype="float16"), tmp_path / "half")
    export(order(base, str(one), dtype="float32"), tmp_path / "single")
    assert {tensor.dtype for tensor in weights(tmp_path / "half").values()} == {torch.float16}
    for name in ("half", "single"):
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["dtype"] == {"half": "float16", "single": "float32"}[name]
    wanted = {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors", RECORD_FILE}
    assert {path.name for path in (tmp_path / "half").iterdir()} == wanted
    single = weights(tmp_path / "single")
    for name, tensor in weights(base).items():
        if name in deltas(one):
            assert torch.allclose(single[name].double(), tensor.double() + deltas(one)[name], rtol=1e-6, atol=1e-7)


def test_the_record_says_what_went_in_and_what_came_out(folders: Folders, tmp_path: Path) -> None:
    base, one, two = folders
    whole = export(order(base, f"{one} + 0.5*{two}"), tmp_path / "whole")
    cut = export(order(base, f"{one} + 0.5*{two}", max_shard_bytes=2000), tmp_path / "cut")
    assert (whole.shard_count, whole.weights_digest) == (1, cut.weights_digest)
    assert cut.shard_count > 5
    assert whole.export_digest != cut.export_digest
    assert whole.fingerprint == whole.base.fingerprint
    assert whole.weights_digest != whole.base.weights_digest
    assert {entry.digest for entry in whole.inputs.values()} == {
        source.digest for source in order(base, f"{one} + {two}").sources.values()
    }
    # The next adapter is trained on the merged base, and merged into it: the chain stays known.
    deeper = export(order(tmp_path / "cut", str(two)), tmp_path / "deeper")
    assert deeper.base.weights_digest == cut.weights_digest
    assert ExportRecord.model_validate(deeper.base.record) == cut
    again = export(order(tmp_path / "cut", str(two)), tmp_path / "again")
    assert (tmp_path / "again" / RECORD_FILE).read_bytes() == (tmp_path / "deeper" / RECORD_FILE).read_bytes()
    assert again == deeper


def test_equal_names_of_other_bytes_are_another_export(folders: Folders, tmp_path: Path) -> None:
    """A folder outlives registries, and a merged base has its base's fingerprint."""
    base, one, _ = folders
    given = order(base, str(one))
    export(given, tmp_path / "merged")
    onto_merged = order(tmp_path / "merged", str(one))
    assert onto_merged.spec.base_fingerprint == given.spec.base_fingerprint
    assert onto_merged.spec.digest() != given.spec.digest()
    other_bytes = given.spec.model_copy(update={"input_digests": {str(one): "0" * 64}})
    assert other_bytes.digest() != given.spec.digest()
    # A worker whose base model is the one before.
    with pytest.raises(BaseNotExportable, match="another model"):
        lay_out_export(ExportOrder(onto_merged.spec, given.sources, base, given.options))


def test_what_cannot_be_exported_is_refused_before_a_tensor_is_read(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, one, _ = folders
    given = order(base, str(one))
    for source in given.sources.values():
        monkeypatch.setattr(source, "factors", None)
    wrong = given.spec.model_copy(update={"base_fingerprint": "0" * 64})
    with pytest.raises(BaseNotExportable, match="another model"):
        lay_out_export(ExportOrder(wrong, given.sources, base, given.options))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1 << 20})())
    target = ExportFolders(tmp_path)
    staging = target.stage()
    with pytest.raises(DiskTooSmall):
        stage_export(given, target, staging)
    assert list(staging.folder.iterdir()) == []
    staging.close()


def test_a_tied_output_layer_is_refused(folders: Folders, tmp_path: Path) -> None:
    head = tmp_path / "head"
    factors = {"lora_A": torch.ones(2, 16), "lora_B": torch.ones(32, 2)}
    named = {f"base_model.model.lm_head.{factor}.weight": tensor for factor, tensor in factors.items()}
    save_file(named, write_lora(head, **SHAPE) / "adapter_model.safetensors")
    config = json.loads((head / "adapter_config.json").read_text()) | {"r": 2, "target_modules": ["lm_head"]}
    (head / "adapter_config.json").write_text(json.dumps(config))
    tied = save_base(tmp_path / "tied", tied=True)
    with pytest.raises(TiedEmbeddings):
        lay_out_export(order(tied, str(head)))
    free = folders[0]
    assert export(order(free, str(head)), tmp_path / "out").changed_modules == 1


def test_overflow_is_never_published(folders: Folders, tmp_path: Path) -> None:
    base, one, _ = folders
    given = order(base, f"{one} + 300000*{folders[2]}", dtype="float16")
    unbounded = replace(given.options, delta_bound=DeltaBound(math.inf))
    with pytest.raises(NonFinite):
        export(replace(given, options=unbounded), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_cancelled_export_stops_between_blocks(folders: Folders, tmp_path: Path) -> None:
    base, one, _ = folders
    target = ExportFolders(tmp_path)
    staging = target.stage()
    done: list[int] = []
    with pytest.raises(MergeCancelled):
        stage_export(
            order(base, str(one)), target, staging, lambda n, total: done.append(n), lambda: len(done) == 3
        )  # fmt: skip
    staging.close()
    assert done == [1, 2, 3]
    assert list(tmp_path.iterdir()) == []


MEASURE = """
import sys
from pathlib import Path
from amalgam.cli.export import export
root = Path(sys.argv[1])
export(str(root / "adapter-small"), root / "small", root / "warm")
Path("/proc/self/clear_refs").write_text("5")
def peak(field):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) << 10
before = peak("VmRSS")
export(str(root / "adapter-large"), root / "large", root / "out", "float16", max_shard="16MiB")
print(peak("VmHWM") - before)
"""


def test_memory_is_less_than_two_shards_whatever_the_model(tmp_path: Path) -> None:
    """A model of eight shards of 16 MiB; every weight is added to and cast."""
    for name, size, layers in (("small", 64, 1), ("large", 2048, 4)):
        shape: dict[str, Any] = {"layers": layers, "hidden": size, "heads_kv_dim": size, "intermediate": size}
        modules = ("q_proj", "k_proj", "v_proj", "o_proj")
        write_lora(tmp_path / f"adapter-{name}", rank=8, modules=modules, **shape)
        (tmp_path / name).mkdir()
        names = [f"model.layers.{layer}.self_attn.{module}.weight" for layer in range(layers) for module in modules]
        tensors = {name: torch.full((size, size), 0.5, dtype=torch.bfloat16) for name in names}
        save_file(tensors, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text('{"model_type": "llama"}')
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 8
    grown = int(done.stdout.splitlines()[-1])
    assert grown < 2 * (16 << 20)
