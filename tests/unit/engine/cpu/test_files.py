"""Where an adapter's file has its factors, and what is read of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from amalgam.engine.cpu import files
from amalgam.engine.cpu.files import Layouts, Naming, layout_of
from amalgam.engine.cpu.sources import StoredPair

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def parse(name: str) -> tuple[str, str, bool]:
    stored = name.rpartition(".lora_")[0]
    return f"mapped.{stored}", stored, name.endswith("lora_A.weight")


def mapped(layouts: Layouts, path: str, naming: Naming) -> tuple[Any, Any]:
    found = layouts.map(path, naming)
    assert found is not None
    return found


NAMING = Naming(frozenset({"q_proj", "down_proj"}), "none", parse)


def save(
    path: Path,
    *,
    seed: int = 0,
    dtypes: Sequence[torch.dtype] = DTYPES,
    rank: int = 3,
    metadata: dict[str, str] | None = None,
) -> Path:
    """A module of each type, in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for number, dtype in enumerate(dtypes):
        tensors[f"{number}.q_proj.lora_B.weight"] = torch.randn(7, rank, generator=generator).to(dtype)
        tensors[f"{number}.q_proj.lora_A.weight"] = torch.randn(rank, 5 + number, generator=generator).to(dtype)
    save_file(tensors, path, metadata=metadata)
    return path


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_what_is_read_is_what_the_library_reads(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    """Bits of bfloat16 stay as they are; of the others one more copy would be as wide."""
    path = save(tmp_path / "some.safetensors", metadata=metadata)
    file, layout = mapped(Layouts(), str(path), NAMING)
    want = load_file(path)
    assert sorted(places.name for places in layout) == [f"mapped.{n}.q_proj" for n in range(len(DTYPES))]
    for name, stored, place_a, place_b in layout:
        assert name == f"mapped.{stored}"
        a, b = place_a.read(file), place_b.read(file)
        is_half = want[f"{stored}.lora_A.weight"].dtype is torch.bfloat16
        assert {(part.bits.itemsize, part.shift) for part in (a, b)} == {(2, 16) if is_half else (4, 0)}
        read_a, read_b = StoredPair(a, b, 1.0).tensors()
        assert read_a.equal(want[f"{stored}.lora_A.weight"].float())
        assert read_b.equal(want[f"{stored}.lora_B.weight"].float())


def test_compiled_loops_find_the_arrays_that_they_were_compiled_for(tmp_path: Path) -> None:
    """Writable, aligned and contiguous: numba would compile again for any other, within a step."""
    file, layout = mapped(Layouts(), str(save(tmp_path / "some.safetensors")), NAMING)
    for places in layout:
        for place in (places.a, places.b):
            flags = place.read(file).bits.flags
            assert flags.writeable
            assert flags.aligned
            assert flags.c_contiguous


def test_files_that_are_laid_out_alike_are_looked_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up = []

    def counted(header: Any, naming: Naming) -> Any:
        looked_up.append(naming)
        return layout_of(header, naming)

    monkeypatch.setattr(files, "layout_of", counted)
    layouts = Layouts()
    one, other = save(tmp_path / "one", seed=1), save(tmp_path / "other", seed=2)
    first, second = mapped(layouts, str(one), NAMING), mapped(layouts, str(other), NAMING)
    assert second[1] is first[1]
    assert len(looked_up) == 1
    a = second[1][0].a.read(second[0]).bits
    assert (a != first[1][0].a.read(first[0]).bits).any()
    mapped(layouts, str(one), Naming(NAMING.modules, "none", lambda name: parse(name)))
    assert len(looked_up) == 1
    mapped(layouts, str(one), Naming(NAMING.modules, "another", parse))
    mapped(layouts, str(one), Naming(NAMING.modules | {"up_proj"}, "none", parse))
    mapped(layouts, str(save(tmp_path / "larger", rank=4)), NAMING)
    assert len(looked_up) == 4


def test_writing_to_what_was_read_leaves_the_file_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "some.safetensors")
    before = path.read_bytes()
    file, layout = mapped(Layouts(), str(path), NAMING)
    layout[0].a.read(file).bits[:] = 0
    assert path.read_bytes() == before


ENTRY = {"dtype": "BF16", "shape": [1, 1], "data_offsets": [0, 2]}
PAIR = {"x.q_proj.lora_A.weight": ENTRY, "x.q_proj.lora_B.weight": ENTRY}


def layout_for(entries: dict[str, Any], *, odd: Any = False) -> Any:
    header = json.dumps(entries).encode()
    return layout_of(header + b" " * ((len(header) + odd) % 2), NAMING)


@pytest.mark.parametrize(
    "entries",
    [
        PAIR | {"x.q_proj.lora_A.weight": ENTRY | {"dtype": "F64"}},
        PAIR | {"x.q_proj.lora_A.weight": ENTRY | {"shape": [1]}},
        PAIR | {"y.q_proj.lora_B.weight": ENTRY},
        PAIR | {"y.k_proj.lora_A.weight": ENTRY, "y.k_proj.lora_B.weight": ENTRY},
        PAIR | {"x.q_proj.lora_magnitude_vector": ENTRY},
        PAIR | {"embed_tokens.lora_embedding_A": ENTRY},
        {name.replace("x.", "x.experts.0."): entry for name, entry in PAIR.items()},
    ],
    ids=["type", "vector", "half a pair", "unknown module", "more than pairs", "embedding", "experts"],
)
def test_what_is_not_a_pair_of_factors_of_the_model_is_left_to_vllm(entries: dict[str, Any]) -> None:
    assert layout_for(PAIR) is not None
    assert layout_for(entries) is None


def test_a_tensor_that_does_not_begin_at_a_multiple_of_its_size_is_left_to_vllm() -> None:
    assert layout_for(PAIR, odd=True) is None
