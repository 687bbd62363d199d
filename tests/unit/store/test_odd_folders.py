"""Folders that PEFT's own saving does not write and people have: taken as PEFT reads them or refused, on every road."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch

from amalgam.domain.adapter import BaseModelSpec
from amalgam.store.file_rules import judge_names
from amalgam.store.peft_folder import read_peft_folder
from tests.unit.store.test_folder_roads import (
    MODULES,
    PREFIX,
    WEIGHTS,
    base,
    factors,
    store,
    verdicts,
    write,
)
from tests.unit.store.tiny_base import HIDDEN

__all__ = ["base", "store", "verdicts"]  # fixtures

Make = Callable[[Path], None]
LEFT_AWAY: Final = object()
SCALE: Final = 2.0
"""Of the plain config: lora_alpha 8 at rank 4."""


def says(**changes: Any) -> Make:
    """A config that says other things; `LEFT_AWAY` takes a field out."""

    def make(folder: Path) -> None:
        write(folder, factors())
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: value for name, value in config.items() if value is not LEFT_AWAY}))

    return make


def written(change: Callable[[str], bytes]) -> Make:
    """A config of the same content in other bytes."""

    def make(folder: Path) -> None:
        write(folder, factors())
        path = folder / "adapter_config.json"
        path.write_bytes(change(path.read_text()))

    return make


def beside(*names: str) -> Make:
    def make(folder: Path) -> None:
        write(folder, factors())
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"\x00\x05\x16\x07")

    return make


def headed(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Make:
    """Weights with another header before the same bytes."""

    def make(folder: Path) -> None:
        write(folder, factors())
        raw = (folder / WEIGHTS).read_bytes()
        length = int.from_bytes(raw[:8], "little")
        text = json.dumps(change(json.loads(raw[8 : 8 + length]))).encode()
        (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])

    return make


def stored_as(kind: str, dtype: type[np.floating[Any]] | np.dtype[Any], names: str = "") -> Make:
    """Factors whose names hold ``names``, in another type of the format's; every value is the same."""

    def make(folder: Path) -> None:
        write(folder, factors())
        header: dict[str, Any] = {}
        data = b""
        for name, values in factors().items():
            own = names in name
            blob = values.astype(dtype if own else np.float32).tobytes()
            offsets = [len(data), len(data) + len(blob)]
            header[name] = {"dtype": kind if own else "F32", "shape": list(values.shape), "data_offsets": offsets}
            data += blob
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data)

    return make


def ranked(folder: Path) -> None:
    """Another rank in the first layer, by an expression."""
    tensors = {n: v[:2] if "lora_A" in n and ".0." in n else v for n, v in factors().items()}
    tensors = {n: v[:, :2] if "lora_B" in n and ".0." in n else v for n, v in tensors.items()}
    write(folder, tensors, rank_pattern={r"^model\.layers\.0\..*": 2}, alpha_pattern={r".*\.0\.self_attn\.o_proj": 4})


def one_layer(folder: Path) -> None:
    only = {name: value for name, value in factors().items() if ".1." in name}
    write(folder, only, layers_to_transform=1, layers_pattern="layers")


def of_eight(folder: Path) -> None:
    """PEFT's own rank and alpha, which the config therefore need not name."""
    tensors = {n: np.concatenate([v, v], axis=0 if "lora_A" in n else 1) for n, v in factors().items()}
    write(folder, tensors)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({name: config[name] for name in ("peft_type", "task_type", "target_modules")}))


def of_first(change: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
    return {name: change(value) if MODULES[0] in name else value for name, value in factors().items()}


def with_bytes_behind(folder: Path) -> None:
    write(folder, factors())
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + b"\0" * 8)


def as_lines(text: str) -> bytes:
    return json.dumps(json.loads(text), indent=2).replace("\n", "\r\n").encode()


TAKEN: Final[dict[str, tuple[Make, set[str]]]] = {
    "fields of later releases": (says(use_hyperlora={"a": [1, {"b": None}]}, brand_new=True), set()),
    "switches that are null": (
        says(use_rslora=None, use_dora=None, lora_bias=None, fan_in_fan_out=None, use_qalora=None, bias=None), set(),
    ),
    "no biases, by a switch": (says(bias=False, lora_bias="none"), set()),
    "tables that are null": (says(rank_pattern=None, alpha_pattern=None, loftq_config=None), set()),
    "lists that are empty": (
        says(modules_to_save=[], layer_replication=[], trainable_token_indices=[], target_parameters=[]), set(),
    ),
    "targets by an expression": (says(target_modules=r".*\.self_attn\.(q_proj|o_proj)"), set()),
    "all linear targets": (says(target_modules="all-linear"), set()),
    "targets by longer ends": (says(target_modules=["self_attn.q_proj", *(m for m in MODULES if "o_" in m)]), set()),
    "more targets than factors": (says(target_modules=["q_proj", "o_proj", "v_proj"]), set()),
    "no targets": (says(target_modules=LEFT_AWAY), set()),
    "targets that are null": (says(target_modules=None), set()),
    "fewer targets than factors": (says(target_modules=["q_proj"]), {"modules_not_named"}),
    "an expression for fewer": (says(target_modules=r"model\.layers\.0\..*_proj"), {"modules_not_named"}),
    "an expression that cannot be asked": (says(target_modules=r"(?!visual).*\.[qo]_proj"), set()),
    "excluded modules with factors": (says(exclude_modules=["o_proj"]), {"modules_not_named"}),
    "excluded by an expression": (says(exclude_modules=r".*layers\.0.*"), {"modules_not_named"}),
    "a layer by its number": (says(layers_to_transform=1), {"modules_not_named"}),
    "layers by a list": (says(layers_to_transform=[0], layers_pattern=["h", "layers"]), {"modules_not_named"}),
    "all layers": (says(layers_to_transform=[0, 1], layers_pattern="layers"), set()),
    "no base model": (says(base_model_name_or_path=None), set()),
    "a base model in a folder": (says(base_model_name_or_path="/home/someone/models/tiny/"), set()),
    "half a character": (says(revision="\ud800", auto_mapping={"parent_library": "\udfff"}), set()),
    "a task of its own": (says(task_type="FOO_BAR"), set()),
    "an alpha with a fraction": (says(lora_alpha=8.0), set()),
    "settings of a running program": (says(runtime_config={"ephemeral_gpu_offload": True}), set()),
    "lines as on Windows": (written(as_lines), set()),
    "a mark of UTF-8": (written(lambda text: b"\xef\xbb\xbf" + text.encode()), set()),
    "UTF-16": (written(lambda text: text.encode("utf-16")), set()),
    "UTF-16 without a mark": (written(lambda text: text.encode("utf-16-le")), set()),
    "NaN where nobody reads it": (written(lambda t: t.replace("{", '{"lora_dropout": NaN, ', 1).encode()), set()),
    "a field twice": (written(lambda text: text.replace('"r": 4', '"r": 2, "r": 4').encode()), set()),
    "metadata of another program": (headed(lambda h: h | {"__metadata__": {"format": "mlx", "ss_tag": "1"}}), set()),
    "metadata that is null": (headed(lambda header: header | {"__metadata__": None}), set()),
    "no metadata": (headed(lambda header: {n: v for n, v in header.items() if n != "__metadata__"}), set()),
    "float64": (stored_as("F64", np.float64), {"values_rounded"}),
    "float64 beside float32": (stored_as("F64", np.float64, "lora_B"), {"values_rounded"}),
    "what desktops leave": (
        beside(".DS_Store", "._adapter_config.json", "__MACOSX/._adapter_model.safetensors", "Thumbs.db"),
        {"file_ignored"},
    ),
    "names in other cases": (beside("ADAPTER_MODEL.SAFETENSORS", "Adapter_Config.json"), {"file_ignored"}),
    "pickled weights and checkpoints beside": (
        beside("adapter_model.bin", "checkpoint-500/adapter_model.safetensors", "checkpoint-500/optimizer.pt"),
        {"file_ignored"},
    ),
}  # fmt: skip
"""By name: the folder, and the codes of what is said. Each changes what the plain adapter changes."""

NOT_PEFTS: Final = frozenset({
    "switches that are null", "no biases, by a switch", "tables that are null", "lists that are empty",
    "a task of its own", "a mark of UTF-8", "UTF-16", "UTF-16 without a mark", "no targets", "targets that are null",
    "half a character",
})  # fmt: skip
"""What PEFT of today does not read, or takes its own targets for; what is stored of it PEFT reads, but for the task."""

REFUSED: Final[dict[str, tuple[Make, str, str]]] = {
    "a rank in a text": (says(r="4"), "invalid_config", "Save the adapter again"),
    "a rank with a fraction": (says(r=4.0), "invalid_config", "Save the adapter again"),
    "an alpha in a text": (says(lora_alpha="8"), "invalid_config", "Save the adapter again"),
    "an alpha that is null": (says(lora_alpha=None), "invalid_config", "Save the adapter again"),
    "an alpha without end": (
        written(lambda text: text.replace('"lora_alpha": 8', '"lora_alpha": Infinity').encode()), "invalid_config",
        "finite",
    ),
    "an alpha that is NaN": (
        written(lambda text: text.replace('"lora_alpha": 8', '"lora_alpha": NaN').encode()), "invalid_config", "finite",
    ),
    "a rank that is null": (says(rank_pattern={"q_proj": None}), "invalid_config", "rank_pattern"),
    "targets that are numbers": (says(target_modules=[1]), "invalid_config", "target_modules"),
    "JSON with a comma too many": (written(lambda text: text.replace("}", ",}").encode()), "invalid_config", "JSON"),
    "a list": (written(lambda text: f"[{text}]".encode()), "invalid_config", "JSON object"),
    "no type": (says(peft_type=LEFT_AWAY), "invalid_config", "peft_type"),
    "whole modules that are not there": (says(modules_to_save=["lm_head"]), "unsupported_modules", "modules_to_save"),
    "float8": (stored_as("F8_E4M3", np.dtype("u1")), "unsupported_dtype", "tensor.float()"),
    "an alpha among the tensors": (
        lambda folder: write(folder, factors() | {f"{PREFIX}{MODULES[0]}.alpha": np.array(8.0, np.float32)}),
        "unknown_tensors", "alpha",
    ),
    "not gathered from ZeRO-3": (
        lambda folder: write(folder, of_first(lambda value: np.zeros((0,), np.float32))), "shape_mismatch",
        "stage3_gather_16bit_weights_on_model_save",
    ),
    "rank zero": (
        lambda folder: write(folder, of_first(lambda v: v[:0] if v.shape[0] < HIDDEN else v[:, :0])),
        "shape_mismatch", "do not multiply",
    ),
    "a module twice": (
        lambda folder: write(folder, factors() | {n.removeprefix(PREFIX): v for n, v in factors().items()}),
        "unknown_tensors", "a second time",
    ),
    "bytes behind the tensors": (with_bytes_behind, "invalid_header", "Save it again"),
    "metadata of numbers": (headed(lambda h: h | {"__metadata__": {"epoch": 1}}), "invalid_header", "Save it again"),
}  # fmt: skip


def expected() -> dict[str, torch.Tensor]:
    found = {name: torch.from_numpy(value).double() for name, value in factors().items()}
    pairs = {module: [found[f"{PREFIX}{module}.lora_{factor}.weight"] for factor in "BA"] for module in MODULES}
    return {module: SCALE * b @ a for module, (b, a) in pairs.items()}


@pytest.mark.parametrize("name", TAKEN)
def test_an_odd_folder_is_taken_alike(name: str, verdicts: Any) -> None:
    make, warnings = TAKEN[name]
    for road, found in verdicts(make):
        assert found.errors == frozenset(), (road, found.texts)
        assert found.warnings == warnings, (road, found.texts)
        assert all(torch.equal(found.deltas[module], delta) for module, delta in expected().items()), road


@pytest.mark.parametrize("name", REFUSED)
def test_an_odd_folder_is_refused_alike_with_the_next_step(name: str, verdicts: Any) -> None:
    make, code, step = REFUSED[name]
    for road, found in verdicts(make):
        assert code in found.errors, (road, found.texts)
        assert found.errors <= {code, "no_effect"}, (road, found.texts)
        assert any(step in text for text in found.texts), (road, found.texts)


@pytest.mark.parametrize("make", [ranked, one_layer, of_eight])
def test_what_the_config_says_of_single_modules_is_read_alike(make: Make, verdicts: Any) -> None:
    seen = []
    for road, found in verdicts(make):
        assert found.errors | found.warnings == frozenset(), (road, found.texts)
        seen.append(found.deltas)
    assert all(one.keys() == seen[0].keys() for one in seen)
    assert all(torch.equal(one[module], seen[0][module]) for one in seen for module in seen[0])


@pytest.mark.parametrize(("names", "step"), [
    (["adapter.zip"], "Unpack 'adapter.zip'"),
    (["sql.tar.gz", "README.md"], "Unpack 'sql.tar.gz'"),
    (["adapter_model.safetensors.gz", "adapter_config.json"], "Unpack 'adapter_model.safetensors.gz'"),
    (["ADAPTER_MODEL.SAFETENSORS"], "If 'ADAPTER_MODEL.SAFETENSORS' holds its tensors"),
])  # fmt: skip
def test_weights_that_nobody_opens_are_told_with_what_to_do(names: list[str], step: str) -> None:
    [finding] = [one for one in judge_names(names) if one.severity == "error"]
    assert finding.code == "missing_file"
    assert step in finding.message


@pytest.mark.parametrize("name", ["Adapter_Config.json", "adapter_config (1).json", "adapter-config.json"])
def test_a_config_under_another_name_is_told_with_what_to_do(name: str, verdicts: Any) -> None:
    def make(folder: Path) -> None:
        write(folder, factors())
        (folder / "adapter_config.json").rename(folder / name)

    for road, found in verdicts(make):
        assert found.errors == {"missing_file"}, (road, found.texts)
        if road != "push":  # it names what it leaves behind, and sends the rest
            assert any(f"If {name!r} is it" in text for text in found.texts), (road, found.texts)


@pytest.mark.parametrize("name", ["adapter_config.json", WEIGHTS])
def test_a_link_to_nothing_is_nothing(name: str, tmp_path: Path) -> None:
    """A hub's cache is full of links, and what was pruned of it leaves them behind."""
    write(tmp_path, factors())
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("../../blobs/0123456789abcdef")
    found = read_peft_folder(tmp_path, None)
    assert {finding.code for finding in found.errors} == {"missing_file"}
    assert name in found.errors[0].message


def test_what_float32_cannot_hold_is_not_finite_where_it_is_rounded(tmp_path: Path) -> None:
    for largest, code in ((3.0e38, "delta_too_large"), (3.4028235677973366e38, "non_finite"), (1e300, "non_finite")):
        write(tmp_path, factors())
        stored_as("F64", np.float64)(tmp_path)
        raw = bytearray((tmp_path / WEIGHTS).read_bytes())
        raw[-8:] = np.float64(largest).tobytes()
        (tmp_path / WEIGHTS).write_bytes(raw)
        assert code in {finding.code for finding in read_peft_folder(tmp_path, None).errors}, largest


def test_one_module_in_two_cases_is_one_that_the_model_lacks(tmp_path: Path, base: BaseModelSpec) -> None:
    write(tmp_path, factors() | {name.replace("q_proj", "Q_PROJ"): value for name, value in factors().items()})
    found = read_peft_folder(tmp_path, base)
    assert {finding.code for finding in found.errors} == {"unknown_modules"}
    assert "Q_PROJ" in found.errors[0].message
