"""Where the tensors of an adapter folder lie, in one file or in shards, by their canonical names. No tensor is read."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from amalgam.domain.adapter import unchanged
from amalgam.errors.adapters import InvalidSafetensors
from amalgam.errors.findings import Finding
from amalgam.store.file_rules import (
    MAGIC_BYTES,
    WEIGHTS_FILE,
    looks_pickled,
    names_in,
    shown,
    unsafe,
    weights_files,
)
from amalgam.store.module_names import Renaming
from amalgam.store.safetensors_header import TensorSpan, read_header
from amalgam.store.tensor_names import PREFIX, CanonicalName, canonical_name, described

_SHOWN_ADAPTERS: Final = 4


@dataclass(slots=True)
class StoredTensors:
    """The tensors of a folder, and what is to be said about how they are stored."""

    spans: dict[str, TensorSpan] = field(default_factory=dict)
    """They are by canonical name; each says in which file it lies."""
    stored_names: dict[str, str] = field(default_factory=dict)
    """It maps a canonical name to the name in the file."""
    spelled: dict[str, str] = field(default_factory=dict)
    """It maps a canonical name to what it was before the base model's own renaming, where that is another."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_plain(self) -> bool:
        """Whether they lie in the one file, under their canonical names."""
        return all(span.file == WEIGHTS_FILE for span in self.spans.values()) and all(
            name == stored for name, stored in self.stored_names.items()
        )


def read_stored(folder: Path, rename: Renaming = unchanged) -> StoredTensors | None:
    """Read the headers of a folder's weights files; None where it has none.

    Args:
        rename: Of the base model: gives its modules their canonical names.

    Raises:
        InvalidSafetensors: a file is not one.
        OSError: the folder or a file cannot be read.
    """
    files = [WEIGHTS_FILE] if (folder / WEIGHTS_FILE).is_file() else weights_files(names_in(folder))
    if not files:
        return None
    found = StoredTensors()
    names: list[tuple[str, CanonicalName]] = []
    for file in files:
        for stored, span in read_header(folder / file).items():
            known = canonical_name(stored)
            names.append((stored, known))
            today = rename(known.name.removeprefix(PREFIX))
            if today != known.name.removeprefix(PREFIX):
                found.spelled[PREFIX + today] = known.name
                known = replace(known, name=PREFIX + today)
            if known.name in found.spans:
                message = f"{shown(stored)} names {shown(known.name)} a second time."
                found.findings.append(Finding(code="unknown_tensors", message=message))
            found.spans[known.name] = span._replace(file=file)
            found.stored_names[known.name] = stored
    adapters = sorted({known.adapter for _, known in names if known.adapter is not None})
    if len(adapters) > 1:
        # Their keys would fall together, which says nothing of its own.
        found.findings[:] = [_several(adapters)]
    elif sentence := described(names):
        found.findings.append(Finding(code="keys_renamed", severity="warning", message=sentence))
    return found


def judge_stored(folder: Path, rename: Renaming = unchanged) -> tuple[StoredTensors | None, list[Finding]]:
    """`read_stored`, with what keeps a file from being read as findings; None without such files.

    Raises:
        OSError: the folder or a file cannot be read.
    """
    try:
        found = read_stored(folder, rename)
    except InvalidSafetensors as error:
        for path in sorted(folder.glob("adapter_model*.safetensors")):
            with path.open("rb") as file:
                if looks_pickled(file.read(MAGIC_BYTES)) and not _is_safetensors(path):
                    reason = "is a pickle under another name. Save the adapter as safetensors"
                    return None, [unsafe(path.name, reason)]
        return None, [Finding(code=error.code, message=error.message)]
    return found, [] if found is None else found.findings


def _is_safetensors(path: Path) -> bool:
    try:
        read_header(path)
    except InvalidSafetensors:
        return False
    return True


def _several(adapters: list[str]) -> Finding:
    listed = ", ".join(shown(name) for name in adapters[:_SHOWN_ADAPTERS])
    message = (
        f"It holds {len(adapters)} adapters side by side ({listed}). "
        f"Save one, with save_pretrained(..., selected_adapters=[{adapters[0][:64]!r}])."
    )
    return Finding(code="several_adapters", message=message)


def size_bytes(spans: Mapping[str, TensorSpan]) -> int:
    """The bytes of the values of all tensors."""
    return sum(span.end - span.start for span in spans.values())
