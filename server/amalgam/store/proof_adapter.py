"""A tiny adapter for any base model, written on the spot: what an engine is tried with before it is called ready."""

import json
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from amalgam.domain.adapter import BaseModelSpec
from amalgam.store.base_model import base_spec
from amalgam.store.file_rules import CONFIG_FILE, WEIGHTS_FILE
from amalgam.store.tensor_names import PREFIX

_ATTENTION: Final = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj", "query_key_value", "dense", "c_attn", "Wqkv"}
)
"""Families call the linear modules of attention so, by the last part of their names."""
_NO_PRODUCTS: Final = ("embed", "wte", "wpe", "lm_head", "embed_out", "output")
"""The last parts of names that are looked up, or that make logits, begin so."""
_ENTRY: Final = 1 / 128


@contextmanager
def proof_adapter(model_dir: Path) -> Iterator[Path | None]:
    """A folder with an adapter of rank 1 for the attention of one layer of the model; None where it has no module.

    Raises:
        BaseModelUnreadable: as `base_spec`.
        OSError: there is no place for temporary files.
    """
    base = base_spec(model_dir, "", 1)
    modules = proof_modules(base)
    if not modules:
        yield None
        return
    with TemporaryDirectory(prefix="amalgam-proof-") as folder:
        _write(Path(folder), {name: base.linear_shapes[name] for name in modules})
        yield Path(folder)


def proof_modules(base: BaseModelSpec) -> list[str]:
    """The linear modules of one attention, or one module of a model whose attention has other names."""
    plain = [
        name
        for name in base.linear_shapes
        if not base.routes(name) and not base.reads_media(name) and not name.rpartition(".")[2].startswith(_NO_PRODUCTS)
    ]
    attention = [name for name in plain if name.rpartition(".")[2] in _ATTENTION]
    if not attention:
        return plain[:1]
    block = attention[0].rpartition(".")[0]
    return [name for name in attention if name.rpartition(".")[0] == block]


def _write(folder: Path, shapes: dict[str, tuple[int, int]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for module, (rows, columns) in sorted(shapes.items()):
        for factor, shape in (("lora_A", [1, columns]), ("lora_B", [rows, 1])):
            start, end = end, end + 4 * max(shape)
            name = f"{PREFIX}{module}.{factor}.weight"
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    values = array("f", [_ENTRY]) * (end // 4)
    (folder / WEIGHTS_FILE).write_bytes(len(text).to_bytes(8, "little") + text + values.tobytes())
    names = sorted({module.rpartition(".")[2] for module in shapes})
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": names}
    (folder / CONFIG_FILE).write_text(json.dumps(config))
