"""The blend process's work, in this process: orders in, folders and replies out."""

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from amalgam.domain.delta_bound import DeltaBound
from amalgam.domain.error_report import ErrorReport
from amalgam.domain.expression import parse_expression
from amalgam.domain.messages import FROM_BLENDER, BlendBuilt, BlendInput, BlendOrder, Refusal, written
from amalgam.merge.build import BuildOptions, build_adapter
from amalgam.merge.methods import complete
from amalgam.merge.run import RunOptions
from amalgam.store.peft_folder import read_peft_folder
from amalgam.store.tensor_files import AdapterTensors, FolderSink, open_tensors, write_adapter
from amalgam.workers.blender import Blender, RememberedTensors, serve_orders, warm_up
from tests.support.memory import objects_within
from tests.support.running_app import write_adapter as write_input

RUN = RunOptions(diagnostics=False)


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    return {f"{name}@1": write_input(tmp_path / name, seed=seed) for seed, name in enumerate(("sql", "json"))}


def order(
    inputs: dict[str, Path], expression: str, folder: Path, *, max_rank: int = 16, max_bytes: int = 1 << 20
) -> BlendOrder:
    recipe = complete(parse_expression(expression))
    given = {ref: BlendInput(folder=str(inputs[ref]), digest=f"{ref:0<64}", base="base") for ref in recipe.adapters}
    return BlendOrder(
        id=7, recipe=recipe, inputs=given, folder=str(folder), max_rank=max_rank, max_bytes=max_bytes
    )  # fmt: skip


def built(blender: Blender, order: BlendOrder) -> BlendBuilt:
    answer = blender.answer(order)
    assert isinstance(answer, BlendBuilt)
    return answer


def refused(answer: BlendBuilt | Refusal) -> ErrorReport | None:
    return answer.error if isinstance(answer, Refusal) else None


@pytest.mark.parametrize(
    "expression",
    ["sql@1 + 0.5*json@1", "ties(sql@1, 0.8*json@1; density=0.3)", "dare_ties(sql@1, json@1; space=knots, seed=3)",
     "task_arithmetic(sql@1, json@1; rank=2)"],
)  # fmt: skip
def test_a_blend_is_byte_for_byte_what_a_durable_merge_writes(
    inputs: dict[str, Path], tmp_path: Path, expression: str
) -> None:
    reply = built(Blender(RUN, DeltaBound()), order(inputs, expression, tmp_path / "blend"))
    assert set(reply.seconds) == {"read", "merge", "write"}
    recipe = complete(parse_expression(expression))
    sources = {
        ref: open_tensors(folder, read_peft_folder(folder, None).require(), digest=f"{ref:0<64}")
        for ref, folder in inputs.items()
    }
    build_adapter(recipe, sources, FolderSink(tmp_path / "durable"), BuildOptions(max_rank=16))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "blend" / name).read_bytes() == (tmp_path / "durable" / name).read_bytes()
    assert reply.size_bytes == sum(path.stat().st_size for path in (tmp_path / "blend").iterdir())
    assert read_peft_folder(tmp_path / "blend", None).require().rank == reply.rank


@pytest.mark.parametrize(
    ("expression", "bounds", "code", "param"),
    [
        ("cat(sql@1, json@1)", {"max_rank": 2}, "rank_too_large", "output.rank"),
        ("sql@1 + json@1", {"max_bytes": 100}, "output_too_large", "output.rank"),
        ("sql@1 - 0*json@1", {}, None, None),
        ("0*sql@1", {}, "nothing_to_merge", "inputs"),
        ("1000000*sql@1 + 1000000*json@1", {}, "delta_too_large", None),
        ("5*sql@1 - 3*json@1", {}, None, None),
    ],
)
def test_refusals_are_replies_and_leave_nothing(
    inputs: dict[str, Path],
    tmp_path: Path,
    expression: str,
    bounds: dict[str, int],
    code: str | None,
    param: str | None,
) -> None:
    error = refused(Blender(RUN, DeltaBound()).answer(order(inputs, expression, tmp_path / "blend", **bounds)))
    assert (error and error.code) == code
    assert (error and error.param) == param
    assert (tmp_path / "blend").exists() == (code is None)


def test_inputs_are_opened_once_and_forgotten_when_their_files_are_gone(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []

    def counted(folder: Path, *more: Any, **named: Any) -> AdapterTensors:
        opened.append(folder)
        return open_tensors(folder, *more, **named)

    monkeypatch.setattr("amalgam.workers.blender.open_tensors", counted)
    blender = Blender(RUN, DeltaBound())
    for number in range(3):
        built(blender, order(inputs, "sql@1 + json@1", tmp_path / str(number)))
    assert sorted(opened) == sorted(inputs.values())
    kept = objects_within(blender)
    shutil.rmtree(inputs["json@1"])
    built(blender, order(inputs, "2*sql@1", tmp_path / "four"))
    assert objects_within(blender) < kept
    assert len(opened) == 2
    error = refused(blender.answer(order(inputs, "sql@1 + json@1", tmp_path / "five")))
    assert error is not None
    assert error.code == "artifact_damaged"


def test_the_tensors_of_an_input_are_mapped_once(inputs: dict[str, Path]) -> None:
    folder = inputs["sql@1"]
    header = read_peft_folder(folder, None).require(())
    kept = RememberedTensors(open_tensors(folder, header, digest="0" * 64), folder)
    name = next(iter(header.modules))
    assert kept.factors(name)[0] is kept.factors(name)[0]


def test_a_fault_is_a_reply_and_the_next_order_is_built(inputs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file where the folder should be")
    orders = [
        b"no order\n",
        b'{"type": "wake"}\n',
        written(order(inputs, "sql@1 + json@1", tmp_path / "blocked")) + b"\n",
        written(order(inputs, "sql@1 + json@1", tmp_path / "fine")) + b"\n",
    ]
    replies = io.BytesIO()
    serve_orders(Blender(RUN, DeltaBound()), orders, replies)
    first, second = (FROM_BLENDER.read(line) for line in replies.getvalue().splitlines())
    assert first.error.code == "store_unavailable"
    assert isinstance(second, BlendBuilt)


def test_the_warm_up_needs_no_files() -> None:
    warm_up(RUN)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_are_written_as_the_library_writes_them(tmp_path: Path, dtype: torch.dtype) -> None:
    ours = {
        f"model.layers.{layer}.q": (torch.randn(3, 8).to(dtype), torch.randn(5, 3).to(dtype)) for layer in range(12)
    }
    write_adapter(tmp_path, ours, {}, {})
    flat = {}
    for module, (a, b) in ours.items():
        flat[f"base_model.model.{module}.lora_A.weight"] = a
        flat[f"base_model.model.{module}.lora_B.weight"] = b
    save_file(flat, tmp_path / "library", metadata={"format": "pt"})
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == (tmp_path / "library").read_bytes()
