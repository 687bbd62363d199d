"""Reads and writes the tensors of PEFT folders. Reading maps the file; writing gives the same bytes every time."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor

from amalgam.domain.adapter import AdapterHeader, unchanged
from amalgam.errors.adapters import InvalidAdapter, InvalidSafetensors
from amalgam.errors.merging import MissingInput
from amalgam.store.module_names import Renaming
from amalgam.store.peft_config import load_config
from amalgam.store.safetensors_header import TensorSpan, read_header
from amalgam.store.stored_tensors import StoredTensors, read_stored

WEIGHTS: Final = "adapter_model.safetensors"
CONFIG: Final = "adapter_config.json"
LINEAGE: Final = "lineage.json"
_PREFIX: Final = "base_model.model."
_CHUNK_BYTES: Final = 1 << 20
_DTYPES: Final = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
_LOADABLE: Final = frozenset({"BF16", "F16", "F32", "F64", "I64", "I32", "U8", "BOOL"})
"""Tensors of adapters of any kind are stored in these."""
_TYPES: Final = {name: dtype for dtype, name in _DTYPES.items()} | {"F64": torch.float64}


class AdapterTensors:
    """One adapter folder, mapped into memory: tensors are views of the file and are read when they are used.

    The folder must have passed the check of its header; nothing here judges it.
    """

    def __init__(self, folder: Path, header: AdapterHeader, digest: str, rename: Renaming = unchanged) -> None:
        spans = _require_stored(folder, rename).spans
        self._spans = {key.removeprefix(_PREFIX).removesuffix(".weight"): span for key, span in spans.items()}
        # A file is mapped once: asking for its tensors one by one takes longer than to merge them.
        self._bytes = {name: _mapped(folder / name) for name in {span.file for span in spans.values()}}
        self._header = header
        self._digest = digest

    @property
    def header(self) -> AdapterHeader:
        """What was given on opening."""
        return self._header

    @property
    def digest(self) -> str:
        """What was given on opening."""
        return self._digest

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """``lora_A`` [rank, in_features] and ``lora_B`` [out_features, rank] of ``module``, in the stored dtype.

        float64 is rounded to float32.

        Raises:
            MissingInput: the file has no such module.
        """
        try:
            spans = self._spans[f"{module}.lora_A"], self._spans[f"{module}.lora_B"]
        except KeyError as error:
            raise MissingInput(module) from error
        a, b = (self._view(span) for span in spans)
        return a, b

    def _view(self, span: TensorSpan) -> Tensor:
        dtype = _TYPES[span.dtype]
        found = self._bytes[span.file][span.start : span.end]
        if span.start % dtype.itemsize:
            # No writer that we know leaves tensors unaligned, and the format does not forbid it.
            found = found.clone()
        values = found.view(dtype).view(span.shape)
        return values.float() if dtype is torch.float64 else values


def open_tensors(
    folder: Path, header: AdapterHeader, *, digest: str | None = None, rename: Renaming = unchanged
) -> AdapterTensors:
    """Map the tensors of an adapter folder.

    Args:
        folder: A checked PEFT folder.
        header: What the check found.
        digest: Of the version; None: that of the weights file, which is read once for it.
        rename: Of the base model that the header was read for.
    """
    return AdapterTensors(folder, header, digest or weights_digest(folder), rename)


def weights_digest(folder: Path) -> str:
    """SHA-256, in hex, of the weights file; of the digests of all shards where there are several.

    Raises:
        MissingInput: the folder has none.
        OSError: a file cannot be read.
    """
    files = sorted({span.file for span in _require_stored(folder).spans.values()}) or [WEIGHTS]
    digests = [file_digest(folder / name) for name in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _require_stored(folder: Path, rename: Renaming = unchanged) -> StoredTensors:
    found = read_stored(folder, rename)
    if found is None:
        raise MissingInput(folder.name)
    return found


def _mapped(path: Path) -> Tensor:
    return torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)


def load_checked(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, its header checked first.

    Raises:
        InvalidSafetensors: it is none, or holds a tensor of a type that no adapter has.
        OSError: it cannot be read.
    """
    odd = next((name for name, span in read_header(path).items() if span.dtype not in _LOADABLE), None)
    if odd is not None:
        raise InvalidSafetensors(path.name, f"{odd[:128]!r} is of a type that no adapter has")
    loaded: dict[str, Tensor] = load_file(path)
    return loaded


def read_all(folder: Path, rename: Renaming = unchanged) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """Config, tensors by canonical name and digest of the weights of a folder of any kind, its headers checked first.

    Args:
        rename: Of the base model.

    Raises:
        InvalidSafetensors: a file is not one.
        InvalidAdapter: it has no config that can be read.
        MissingInput: it has no weights.
        OSError: the files cannot be read.
    """
    stored = _require_stored(folder, rename)
    config, findings = load_config(folder)
    if findings:
        raise InvalidAdapter(findings)
    loaded = {name: load_checked(folder / name) for name in {span.file for span in stored.spans.values()}}
    tensors = {name: loaded[span.file][stored.stored_names[name]] for name, span in stored.spans.items()}
    return config, tensors, weights_digest(folder)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            state.update(chunk)
    return state.hexdigest()


def write_adapter(
    folder: Path, tensors: Mapping[str, tuple[Tensor, Tensor]], config: Mapping[str, Any], lineage: Mapping[str, Any]
) -> None:
    """Write a PEFT folder: weights, config and lineage. Equal arguments give equal bytes.

    Args:
        folder: Created where absent; files in it are replaced.
        tensors: Canonical module name -> (A [rank, in], B [out, rank]), on any device.
        config: Of ``adapter_config.json``.
        lineage: Of ``lineage.json``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    flat = {}
    for module, (a, b) in tensors.items():
        flat[f"{_PREFIX}{module}.lora_A.weight"] = a.detach().to("cpu").contiguous()
        flat[f"{_PREFIX}{module}.lora_B.weight"] = b.detach().to("cpu").contiguous()
    _write_tensors(folder / WEIGHTS, dict(sorted(flat.items())))
    # A config is read by people, a lineage has thousands of numbers.
    for name, content, indent in ((CONFIG, config, 2), (LINEAGE, lineage, None)):
        text = json.dumps(content, indent=indent, sort_keys=True, ensure_ascii=False, allow_nan=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file in the order given: the library's own bytes, in a quarter of its time.

    A client may be waiting for a blend, and the library looks at every tensor in several ways first.

    Args:
        path: Replaced where it is there.
        tensors: On the CPU, contiguous, all of one dtype of `_DTYPES`.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.view(-1).view(torch.uint8).numpy().data)


class FolderSink:
    """Where a merge puts its result: a folder, written once at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(
        self, tensors: Mapping[str, tuple[Tensor, Tensor]], config: Mapping[str, Any], lineage: Mapping[str, Any]
    ) -> None:
        """Write the adapter; see ``write_adapter``."""
        write_adapter(self.folder, tensors, config, lineage)
