"""Writes an adapter of fused experts anew, as pairs expert by expert; see `fused_experts`. Bytes stay as they are."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from amalgam.domain.adapter import BaseModelSpec
from amalgam.store.disk import disk_errors
from amalgam.store.file_rules import CONFIG_FILE, WEIGHTS_FILE, names_in, weights_files
from amalgam.store.fused_experts import Cut, Separated, names_parameters, separate
from amalgam.store.peft_config import load_config
from amalgam.store.peft_tensors import FACTORS
from amalgam.store.safetensors_header import DTYPE_BITS, TensorSpan
from amalgam.store.staging import Staging
from amalgam.store.stored_tensors import judge_stored
from amalgam.store.tensor_names import PREFIX

_WORDS: Final[Mapping[int, np.dtype[Any]]] = {16: np.dtype("<u2"), 32: np.dtype("<u4")}
_KEPT: Final = 2
"""So many stacks of experts are in memory: the two factors of one parameter."""

_Words = NDArray[np.unsignedinteger[Any]]


def separate_staged(staging: Staging, base: BaseModelSpec) -> None:
    """Rewrite what is staged where it has factors of several experts in one; nothing happens where it cannot be done.

    Raises:
        StoreUnavailable: the disk is full or failing.
        OSError: a staged file cannot be read.
    """
    with disk_errors(), TemporaryDirectory(dir=staging.folder, prefix=".separated-") as beside:
        digests = write_separated(staging.folder, base, Path(beside))
        if digests is None:
            return
        for name in weights_files(names_in(staging.folder)):
            staging.drop(name)
        for name, digest in digests.items():
            (Path(beside) / name).replace(staging.folder / name)
            staging.replace(name, digest)


def write_separated(folder: Path, base: BaseModelSpec, into: Path) -> dict[str, str] | None:
    """Write the adapter in ``folder`` into ``into``, which must be there and have no files of an adapter.

    Returns: the SHA-256, in hex, of each file by its name; None where the adapter names no parameters, or some that
        cannot be read, of which `read_peft_folder` says why.

    Raises:
        OSError: a file cannot be read or written.
    """
    config, findings = load_config(folder)
    if findings or not names_parameters(config):
        return None
    stored, findings = judge_stored(folder, base.rename)
    if stored is None or any(finding.severity == "error" for finding in findings):
        return None
    found = separate(config, stored, base)
    if not isinstance(found, Separated):
        return None
    text = (json.dumps(found.config, indent=2, ensure_ascii=False) + "\n").encode()
    (into / CONFIG_FILE).write_bytes(text)
    digest = hashlib.sha256()
    with (into / WEIGHTS_FILE).open("xb") as out:
        for block in _encoded(folder, found):
            digest.update(block)
            out.write(block)
    return {CONFIG_FILE: hashlib.sha256(text).hexdigest(), WEIGHTS_FILE: digest.hexdigest()}


def _encoded(folder: Path, found: Separated) -> Iterator[bytes]:
    """A safetensors file of all tensors, one by one."""
    cuts = {
        f"{PREFIX}{module}.{name}.weight": cut
        for module, pair in found.factors.items()
        for name, cut in zip(FACTORS, pair, strict=True)
    }
    described: dict[str, tuple[str, tuple[int, ...]]] = {}
    described |= {name: (cut.span.dtype, cut.shape) for name, cut in cuts.items()}
    described |= {name: (span.dtype, span.shape) for name, span in found.kept.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in described.items():
        start, end = end, end + prod(shape) * DTYPE_BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # readers map the file, so the data begins at a multiple of eight
    yield len(text).to_bytes(8, "little") + text
    reader = _Reader(folder)
    for cut in cuts.values():
        yield np.ascontiguousarray(reader.read(cut)).tobytes()
    for span in found.kept.values():
        yield reader.raw(span)


class _Reader:
    """Reads factors as words of their width; those of one parameter's experts are put in order once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stacks: dict[TensorSpan, _Words] = {}

    def read(self, cut: Cut) -> _Words:
        """The factor, of the shape that ``cut`` says."""
        if cut.span not in self._stacks:
            while len(self._stacks) >= _KEPT:
                del self._stacks[next(iter(self._stacks))]
            self._stacks[cut.span] = self._stack(cut)
        factor: _Words = self._stacks[cut.span][cut.expert]
        if cut.is_turned:
            factor = factor.T
        return factor if cut.part is None else factor[cut.part[0] : cut.part[1]]

    def raw(self, span: TensorSpan) -> bytes:
        """The bytes of a tensor."""
        with (self._folder / span.file).open("rb") as file:
            file.seek(span.start)
            return file.read(span.end - span.start)

    def _stack(self, cut: Cut) -> _Words:
        """[experts, rows, columns] of a factor of all experts."""
        rows, columns = cut.span.shape
        whole = np.frombuffer(self.raw(cut.span), _WORDS[DTYPE_BITS[cut.span.dtype]]).reshape(rows, columns)
        if not cut.by_columns:
            together: _Words = whole.reshape(cut.experts, rows // cut.experts, columns)
            return together
        spread = whole.reshape(rows, columns // cut.experts, cut.experts)
        stack: _Words = np.ascontiguousarray(spread.transpose(2, 0, 1))
        return stack
