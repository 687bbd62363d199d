"""Brings a staged adapter into the one form that is stored and served: one file, PEFT's names, one type per module.

What the check accepts under other names, in shards or in two types is written anew here, without a tensor library;
bytes are copied, and only a factor of the narrower type is widened, which loses nothing; float64 is rounded to float32.
A config that the engine would not read as this server does is written in words that it reads.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from amalgam.store.base_copies import widened
from amalgam.store.disk import disk_errors
from amalgam.store.file_rules import CONFIG_FILE, KEPT_FILES, WEIGHTS_FILE, is_taken
from amalgam.store.named_modules import NOT_NAMED
from amalgam.store.peft_config import TRAINING_FIELDS, LoraRules, as_engines_read
from amalgam.store.peft_folder import PeftFolder
from amalgam.store.peft_tensors import read_dtype
from amalgam.store.safetensors_header import DTYPE_BITS, TensorSpan
from amalgam.store.staging import Staging
from amalgam.store.tensor_names import PREFIX

_BLOCK_BYTES: Final = 1 << 20
_KINDS: Final[dict[str, np.dtype[Any]]] = {"BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "F64": np.dtype("<f8")}
"""These are written in another type; float32 never is."""
_WRITTEN: Final = "adapter_model.written"


def make_canonical(staging: Staging, found: PeftFolder) -> None:
    """Rewrite what is staged where its form differs from the stored one; nothing happens where it does not.

    Args:
        staging: Holds the files of an adapter that was judged to be sound.
        found: What was found in it.

    Raises:
        StoreUnavailable: the disk is full or failing.
    """
    if not _is_canonical(found):
        _write_weights(staging, found)
    changes: dict[str, Any] = {}
    if found.copies and found.config.get("modules_to_save"):
        changes["modules_to_save"] = None
    if found.of_training:
        changes |= {field: None for field in TRAINING_FIELDS if found.config.get(field)}
    if any(finding.code == NOT_NAMED for finding in found.findings):
        # What is served is what PEFT applies of it from then on.
        changes |= {"exclude_modules": None, "layers_to_transform": None, "layers_pattern": None}
        changes["target_modules"] = sorted(found.factors)
    elif not found.config.get("target_modules"):
        changes["target_modules"] = sorted(found.factors)
    if found.rules is not None and found.rules.spelled:
        changes |= _respelled(found.rules, sorted(found.factors))
    with disk_errors():
        plain = as_engines_read(found.config, (staging.folder / CONFIG_FILE).read_bytes())
    if changes or plain is not None:
        _write_config(staging, {**(plain or found.config), **changes})
    with disk_errors():
        spare = [path.name for path in staging.folder.iterdir() if is_taken(path.name) and path.name not in KEPT_FILES]
    for name in spare:
        staging.drop(name)


def _respelled(rules: LoraRules, modules: list[str]) -> dict[str, Any]:
    """What a config says by module, by the names that the modules have now."""
    ranks = {module: rules.rank_of(module) for module in modules}
    alphas = {module: rules.alpha_of(module) for module in modules}
    return {
        "target_modules": modules,
        "rank_pattern": {module: rank for module, rank in ranks.items() if rank != rules.rank},
        "alpha_pattern": {module: alpha for module, alpha in alphas.items() if alpha != rules.alpha},
    }


def _is_canonical(found: PeftFolder) -> bool:
    as_read = all({span.dtype for span in pair.values()} == {_dtype_of(pair)} for pair in found.factors.values())
    return found.stored.is_plain and not found.copies and not found.of_training and as_read


def _dtype_of(pair: Mapping[str, TensorSpan]) -> str:
    return read_dtype(pair["lora_A"].dtype, pair["lora_B"].dtype)


def _write_weights(staging: Staging, found: PeftFolder) -> None:
    tensors: dict[str, tuple[TensorSpan, str]] = {}
    for module, pair in sorted(found.factors.items()):
        dtype = _dtype_of(pair)
        tensors |= {f"{PREFIX}{module}.{factor}.weight": (pair[factor], dtype) for factor in ("lora_A", "lora_B")}
    digest = hashlib.sha256()
    with disk_errors():
        with (staging.folder / _WRITTEN).open("xb") as out:
            for block in _encoded(staging.folder, tensors):
                digest.update(block)
                out.write(block)
        (staging.folder / _WRITTEN).replace(staging.folder / WEIGHTS_FILE)
    staging.replace(WEIGHTS_FILE, digest.hexdigest())


def _encoded(folder: Path, tensors: dict[str, tuple[TensorSpan, str]]) -> Iterator[bytes]:
    """A safetensors file of the tensors, block by block, each in its new type."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (span, dtype) in tensors.items():
        start, end = end, end + prod(span.shape) * DTYPE_BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(span.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # readers map the file, so the data begins at a multiple of eight
    yield len(text).to_bytes(8, "little") + text
    for span, dtype in tensors.values():
        with (folder / span.file).open("rb") as file:
            yield from _values(file, span, dtype)


def _values(file: BinaryIO, span: TensorSpan, dtype: str) -> Iterator[bytes]:
    file.seek(span.start)
    left = span.end - span.start
    while left:
        raw = file.read(min(left, _BLOCK_BYTES))
        if not raw:
            raise OSError("the file ended before its header said it would")
        left -= len(raw)
        if dtype != span.dtype:
            raw = widened(np.frombuffer(raw, _KINDS[span.dtype]), span.dtype).tobytes()
        yield raw


def _write_config(staging: Staging, config: dict[str, Any]) -> None:
    # Escaped, because a text may hold halves of characters, which have no bytes of their own.
    text = (json.dumps(config, indent=2) + "\n").encode()
    with disk_errors():
        (staging.folder / CONFIG_FILE).write_bytes(text)
    staging.replace(CONFIG_FILE, hashlib.sha256(text).hexdigest())
