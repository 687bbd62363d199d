"""llama.cpp's LoRA files: what is written is read by the ``gguf`` package, by the formula of llama.cpp, and here."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from amalgam.__main__ import app
from amalgam.cli.recipe_options import open_inputs
from amalgam.domain.recipe import Recipe, RecipeInput
from amalgam.errors import AmalgamError
from amalgam.errors.formats import InvalidGguf, UnsupportedTarget
from amalgam.errors.merging import UnsupportedFormat
from amalgam.errors.requests import FieldRefused
from amalgam.store.gguf_files import open_gguf, write_gguf
from amalgam.store.gguf_header import read_gguf_header
from amalgam.store.gguf_names import ARCHITECTURES, GgufModel, model_of, module_names
from amalgam.store.loaded_tensors import LoadedTensors, header_of

EXACT = 1e-6
"""Of Δ, relative: float32 factors, one multiplication by the scale."""

HEADS, KV_HEADS, HEAD_SIZE, HIDDEN = 4, 2, 6, 20
ROWS = {"q_proj": HEADS * HEAD_SIZE, "k_proj": KV_HEADS * HEAD_SIZE, "v_proj": KV_HEADS * HEAD_SIZE, "c_fc": 30}


def adapter(architecture: Any, layers: int = 2, base_model: str = "/models/Some-Base") -> Any:
    """Random factors in every module of an architecture, ranks from 1 to 4, of scale 0.7."""
    generator = torch.Generator().manual_seed(5)
    pairs = {}
    for number, name in enumerate(module_names(architecture, layers)):
        rank, rows = 1 + number % 4, ROWS.get(name.rpartition(".")[2], 32)
        pairs[name] = torch.randn(rank, HIDDEN, generator=generator), torch.randn(rows, rank, generator=generator)
    return LoadedTensors(header_of(pairs, lambda _: 0.7, base_model), "0" * 64, pairs)


def delta(source: Any, module: Any) -> Any:
    A, B = source.factors(module)
    return source.header.modules[module].scaling * (B.double() @ A.double())


def distance(found: Any, expected: Any) -> Any:
    return float((found - expected).norm() / expected.norm())


def by_llama_cpp(path: Any) -> Any:
    """Δ of every weight as llama.cpp adds it: alpha / rank of B times B·A, from the package's own reader."""
    reader = gguf.GGUFReader(path)
    alpha = float(reader.fields["adapter.lora.alpha"].parts[-1][0])
    found = {tensor.name: torch.from_numpy(np.array(tensor.data)).double() for tensor in reader.tensors}
    return {
        name.removesuffix(".lora_b"): alpha / B.shape[1] * (B @ found[name.replace(".lora_b", ".lora_a")])
        for name, B in found.items()
        if name.endswith(".lora_b")
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_comes_back_as_it_was(architecture: Any, tmp_path: Path) -> None:
    source = adapter(architecture)
    write_gguf(tmp_path / "x.gguf", source, GgufModel(architecture, HEADS, KV_HEADS))
    back = open_gguf("x", tmp_path / "x.gguf")
    assert set(back.header.modules) == set(source.header.modules)
    assert len(source.header.modules) >= 8
    assert {module.rank for module in back.header.modules.values()} == {4}
    for name in source.header.modules:
        assert distance(delta(back, name), delta(source, name)) < EXACT, name
    assert back.header.base_model == "Some-Base"
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


@pytest.mark.parametrize(("architecture", "moves"), [("llama", True), ("qwen2", False)])
def test_the_package_reads_it_and_rows_lie_where_the_converter_puts_them(
    architecture: str, moves: bool, tmp_path: Path
) -> None:
    source = adapter(architecture)
    write_gguf(tmp_path / "x.gguf", source, GgufModel(architecture, HEADS, KV_HEADS))
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    told = {name: bytes(reader.fields[name].parts[-1]).decode() for name in ("general.type", "adapter.type")}
    assert told == {"general.type": "adapter", "adapter.type": "lora"}
    found = by_llama_cpp(tmp_path / "x.gguf")
    for module, name in module_names(architecture, 2).items():
        expected = delta(source, module)
        if moves and module.endswith(("q_proj", "k_proj")):
            # Half j, pair i of a head in transformers is row 2i + j of it in llama.cpp.
            half = HEAD_SIZE // 2
            rows = [
                h * HEAD_SIZE + j * half + i
                for h in range(expected.shape[0] // HEAD_SIZE)
                for i in range(half)
                for j in range(2)
            ]
            expected = expected[rows]
        assert distance(found[name], expected) < EXACT, name


def test_a_converters_file_needs_the_base_model_only_where_rows_moved(tmp_path: Path) -> None:
    """llama.cpp's own converter writes no numbers of heads; alpha and each tensor's own rank make the scale."""
    for architecture in ("llama", "qwen2"):
        writer = gguf.GGUFWriter(tmp_path / f"{architecture}.gguf", architecture)
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", 6.0)
        writer.add_array("general.tags", ["a", "b"])
        writer.add_tensor("blk.0.attn_q.weight.lora_a", np.ones((3, HIDDEN), np.float32))
        writer.add_tensor("blk.0.attn_q.weight.lora_b", np.arange(72, dtype=np.float16).reshape(24, 3))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    assert open_gguf("x", tmp_path / "qwen2.gguf").header.modules["model.layers.0.self_attn.q_proj"].scaling == 2
    with pytest.raises(FieldRefused, match="--base"):
        open_gguf("x", tmp_path / "llama.gguf")
    opened = open_gguf("x", tmp_path / "llama.gguf", GgufModel("llama", HEADS, KV_HEADS))
    assert opened.factors("model.layers.0.self_attn.q_proj")[1][1].tolist() == [6, 7, 8]  # row 2 of llama.cpp
    with pytest.raises(FieldRefused, match="qwen2"):
        open_gguf("x", tmp_path / "llama.gguf", GgufModel("qwen2"))


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), "8"])
def test_an_alpha_that_is_no_number_is_refused(alpha: Any, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "qwen2")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    (writer.add_string if isinstance(alpha, str) else writer.add_float32)("adapter.lora.alpha", alpha)
    writer.add_tensor("output.weight.lora_a", np.ones((4, 8), np.float32))
    writer.add_tensor("output.weight.lora_b", np.ones((8, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedFormat, match="alpha"):
        open_gguf("x", tmp_path / "x.gguf")


def test_quantised_factors_and_no_alpha(tmp_path: Path) -> None:
    values = np.random.default_rng(1).standard_normal((4, 64), np.float32)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "qwen3")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("output.weight.lora_a", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("output.weight.lora_b", np.ones((8, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    opened = open_gguf("x", tmp_path / "x.gguf")
    assert opened.header.modules["lm_head"].scaling == 1
    expected = torch.from_numpy(gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0))
    torch.testing.assert_close(opened.factors("lm_head")[0], expected, rtol=0, atol=0)


def test_what_has_no_place_there_is_refused(tmp_path: Path) -> None:
    source = adapter("qwen2")
    with pytest.raises(UnsupportedTarget, match=r"gemma2 has no name for lm_head"):
        write_gguf(tmp_path / "x.gguf", source, GgufModel("gemma2"))
    with pytest.raises(UnsupportedTarget, match="rows for 5 heads"):
        write_gguf(tmp_path / "x.gguf", adapter("llama"), GgufModel("llama", 5, 5))
    for text, error in (
        ('{"model_type": "qwen3_5_moe"}', UnsupportedTarget),
        ('{"model_type": ["llama"]}', UnsupportedTarget),
        ('{"model_type": "llama"}', FieldRefused),
        ('{"model_type": "llama", "num_attention_heads": -2}', FieldRefused),
        ("[]", FieldRefused),
        ("\xff", FieldRefused),
        ("[" * 10000, FieldRefused),
    ):
        (tmp_path / "config.json").write_text(text, encoding="latin-1")
        with pytest.raises(error):
            model_of(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_files_that_are_none_are_refused_at_every_length_and_for_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_gguf(path, adapter("qwen2", layers=1), GgufModel("qwen2"))
    whole = path.read_bytes()
    end = max(tensor.end for tensor in read_gguf_header(path).tensors.values())
    for length in [*range(0, 2000, 7), len(whole) // 2, end - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(InvalidGguf):
            open_gguf("x", path)
    for position in range(2000):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        # A byte of a name or of the scale may be another just as well; nothing but our own errors comes out.
        with suppress(AmalgamError):
            open_gguf("x", path)
    path.write_bytes(whole.replace(b"blk.0.attn_q", b"blk.0.none_q"))
    with pytest.raises(UnsupportedFormat, match="no place"):
        open_gguf("x", path)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("base")
    config = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def opened(path: Any, base: Any = None) -> Any:
    return open_inputs(Recipe(inputs=(RecipeInput(adapter=str(path)),)), base)[str(path)]


def test_a_merge_is_written_as_gguf_merged_again_and_reported(tmp_path: Path, base: Any) -> None:
    from tests.adapter_factory import write_lora

    small: dict[str, Any] = {"layers": 2, "hidden": 24, "heads_kv_dim": 12, "intermediate": 40, "dtype": "float32"}
    a, b = write_lora(tmp_path / "a", rank=4, seed=1, **small), write_lora(tmp_path / "b", rank=2, seed=2, **small)

    def run(*arguments: Any) -> Any:
        return CliRunner().invoke(app, ["merge", *map(str, arguments)])

    target = tmp_path / "out" / "ab.gguf"
    refused = run("build", f"{a} + {b}", "-o", target)
    assert (refused.exit_code, "--base" in refused.output or "base:" in refused.output) == (2, True)
    assert not target.parent.exists()
    # llama.cpp's form needs the config alone; the bound on deltas then is the wide one.
    done = run("build", f"{a} + {b}", "-o", target, "--base", base)
    assert done.exit_code == 0, done.output
    one, other, merged = opened(a), opened(b), opened(target)
    for name in one.header.modules:
        assert distance(delta(merged, name), delta(one, name) + delta(other, name)) < 5 * EXACT, name
    again = run("build", f"{target} - {b}", "-o", tmp_path / "folder", "--format", "gguf")
    assert again.exit_code == 0, again.output
    left = opened(tmp_path / "folder")
    for name in one.header.modules:
        assert distance(delta(left, name), delta(one, name)) < 1e-5, name
    page = run("report", target.with_suffix(".lineage.json"), "-o", tmp_path / "page.html")
    assert page.exit_code == 0, page.output
    assert run("build", a, "-o", target, "--base", base).exit_code == 2, "it would be replaced"
