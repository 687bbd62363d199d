"""Which files of an adapter folder are read, which come along, and which stay where they are: the one place that says.

A push, an upload, ``file://``, ``hf://`` and an offline merge all ask here. Only what is read can be unsafe: a pickle
that nobody opens harms nobody, so what a trainer leaves beside an adapter is named once and left out.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from amalgam.errors.findings import Finding
from amalgam.store.profile_files import MAX_PROFILE_FILE_BYTES, PROFILE_FILES

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
INDEX_FILE: Final = "adapter_model.safetensors.index.json"
LINEAGE_FILE: Final = "lineage.json"
CARD_FILE: Final = "README.md"

CONTENT_FILES: Final = (CONFIG_FILE, WEIGHTS_FILE)
"""They are what an adapter is: these two decide its digest."""

KEPT_FILES: Final = (*CONTENT_FILES, LINEAGE_FILE, CARD_FILE)
"""They are what is stored; everything else is left behind."""

MAX_TEXT_BYTES: Final = 4 << 20
"""It bounds each stored file but the weights."""

MAGIC_BYTES: Final = 4
"""It tells how much of a file's beginning `looks_pickled` wants to see."""

_SHARD: Final = re.compile(r"adapter_model-(\d{5})-of-(\d{5})\.safetensors")
_PICKLED_WEIGHTS: Final = re.compile(r"adapter_model(-\d{5}-of-\d{5})?\.(bin|pt|pth|ckpt|pkl|pickle)", re.IGNORECASE)
_TRAINED_ALONE: Final = re.compile(r"adapter_\d+\.(bin|pt|pth)", re.IGNORECASE)
"""It matches Torchtune's weights, a file an epoch."""
_ELSEWHERE: Final = (
    (re.compile(r"adapters\.safetensors"), "mlx-lm wrote it"),
    (re.compile(r"pytorch_lora_weights\.safetensors"), "diffusers wrote it"),
    (re.compile(r".+\.gguf", re.IGNORECASE), "It is a file of llama.cpp's"),
)
"""Other programs write these, and `amalgam merge build` makes a PEFT folder of them."""
_SHARDED: Final = (
    (re.compile(r"pytorch_model_fsdp(_\d+/|\.bin)"), "FSDP"),
    (re.compile(r"global_step\d+/"), "DeepSpeed"),
)
"""By the way of training, it matches where trainers leave what they go on from."""
_WHOLE_MODEL: Final = re.compile(r"(pytorch_)?model(-\d{5}-of-\d{5})?\.(safetensors|bin)")
_TRAINED_BESIDE: Final = "non_lora_trainables.bin"
"""LLaVA's trainer writes it for weights that it trained without LoRA."""
_ARCHIVE: Final = re.compile(r".+\.(zip|tgz|tar|tar\.\w+|7z|rar|safetensors\.(gz|zst|xz))", re.IGNORECASE)
_CONFIG_ALMOST: Final = re.compile(r"adapter[_-]?config.*\.json", re.IGNORECASE)
_CHECKPOINT: Final = re.compile(r"checkpoint-\d+/")
_ZIP_MAGIC: Final = b"PK\x03\x04"
_PICKLE_MAGIC: Final = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
_SHOWN_NAMES: Final = 8


def is_weights(name: str) -> bool:
    """Whether a file of that name holds an adapter's tensors, all or a part of them."""
    return name == WEIGHTS_FILE or _SHARD.fullmatch(name) is not None


def is_taken(name: str) -> bool:
    """Whether a file of that name is part of an adapter, and so read; any other is left out unopened."""
    return name in KEPT_FILES or name == INDEX_FILE or is_weights(name)


def is_brought(name: str) -> bool:
    """Whether a file of that name comes along from where an adapter lies: a part of it, or what says how to ask it."""
    return is_taken(name) or name in PROFILE_FILES


@dataclass(frozen=True, slots=True)
class Listing:
    """What a place that lists its files has of an adapter."""

    own: dict[str, int]
    """It has the bytes of each part of the adapter, by name."""
    along: dict[str, int]
    """It has the same of files that say how it wants to be asked."""
    beside: tuple[str, ...]
    """It has the rest, by what of it shows in the adapter's own folder; folders end in a slash."""


def listing(sizes: Mapping[str, int]) -> Listing:
    """What of the files with these paths and ``sizes``, in bytes, is to be fetched."""
    others = frozenset(left_out(sizes))
    own = {name: size for name, size in sizes.items() if name not in others}
    along = {name: sizes[name] for name in PROFILE_FILES if name in sizes and sizes[name] <= MAX_PROFILE_FILE_BYTES}
    tops = (name.partition("/") for name in sorted(others) if name not in along)
    return Listing(own, along, tuple(dict.fromkeys(first + slash for first, slash, _ in tops)))


def weights_files(names: Collection[str]) -> list[str]:
    """The files among ``names`` that hold the tensors: the single one, or all shards of one set; else none."""
    if WEIGHTS_FILE in names:
        return [WEIGHTS_FILE]
    shards = sorted(name for name in names if _SHARD.fullmatch(name))
    counts = {found[2] for name in shards if (found := _SHARD.fullmatch(name))}
    if len(counts) == 1 and len(shards) == int(next(iter(counts))):
        return shards
    return []


def names_in(folder: Path) -> list[str]:
    """What lies in a folder, sorted; subfolders end in a slash, and hidden entries are nobody's concern.

    A folder that is not there holds nothing, and a link to nothing, as caches have them whose files were pruned, is
    nothing either.

    Raises:
        OSError: the folder cannot be read.
    """
    if not folder.exists():
        return []
    found = (path for path in folder.iterdir() if not path.name.startswith(".") and path.exists())
    return sorted(path.name + "/" if path.is_dir() else path.name for path in found)


def left_out(names: Iterable[str]) -> list[str]:
    """Those of ``names`` that are not read; beside a single weights file, its shards and their index are not either."""
    known = list(names)
    spare = WEIGHTS_FILE in known
    return [name for name in known if not is_taken(name) or (spare and (name == INDEX_FILE or _SHARD.fullmatch(name)))]


def names_at_top(paths: Sequence[str]) -> list[str]:
    """What files that come with folders in their names, from a browser or a form, are called in the adapter.

    The adapter's own folder is the highest one that holds weights, or else its config. A file deeper down, such as that
    of a checkpoint, is named by the folder there that it lies in, with a slash at the end, and so left out; every other
    one by its bare name. Dots and empty parts lead nowhere.

    Args:
        paths: With slashes of either kind.

    Returns: one name for each path.
    """
    parts = [[part for part in re.split(r"[/\\]", path) if part not in ("", ".", "..")] or [path] for path in paths]
    depths = [len(found) - 1 for found in parts]
    weights = [depth for found, depth in zip(parts, depths, strict=True) if is_weights(found[-1])]
    configs = [depth for found, depth in zip(parts, depths, strict=True) if found[-1] == CONFIG_FILE]
    own = min(weights or configs or [max(depths, default=0)])
    above = next((found[:own] for found in parts if len(found) - 1 == own and _is_own(found[-1], weights)), [])
    # What lies elsewhere, as in the __MACOSX of an archive, goes by the folder there that all of it lies in.
    return [
        found[-1] if depth <= own else found[own if found[:own] == above else 0] + "/"
        for found, depth in zip(parts, depths, strict=True)
    ]


def _is_own(name: str, weights: Sequence[int]) -> bool:
    return is_weights(name) if weights else name == CONFIG_FILE


def judge_names(names: Sequence[str]) -> list[Finding]:
    """What is to be said about a folder that holds ``names``, before any file of it is opened.

    At most one error, where there are no weights to read, and one warning that names what was left out.
    """
    findings = [] if weights_files(names) else [_no_weights(names)]
    others = left_out(names)
    return [*findings, _ignored(others)] if others else findings


def _no_weights(names: Sequence[str]) -> Finding:
    patterns = (_PICKLED_WEIGHTS, _TRAINED_ALONE)
    pickled = next((name for name in names if any(pattern.fullmatch(name) for pattern in patterns)), None)
    if pickled is not None:
        return unsafe(
            pickled,
            "is a pickle, and loading one runs code. Save the adapter as safetensors, with "
            "save_pretrained(safe_serialization=True)",
        )
    return Finding(code="missing_file", message=f"{WEIGHTS_FILE} is missing. {_where_else(names)}")


def _where_else(names: Sequence[str]) -> str:
    """The next step where there are no weights, by what lies there instead."""
    shards = [name for name in names if _SHARD.fullmatch(name)]
    if shards:
        return f"{len(shards)} of its shards are here, such as {shown(shards[0])}. Add the others."
    checkpoints = [name for name in names if _CHECKPOINT.fullmatch(name)]
    if checkpoints:
        newest = max(checkpoints, key=lambda name: int(name[len("checkpoint-") : -1]))
        return f"Checkpoints lie below; name one, such as {shown(newest)}."
    foreign = next((said for pattern, said in _ELSEWHERE if any(map(pattern.fullmatch, names))), None)
    if foreign is not None:
        return f"{foreign}: 'amalgam merge build FOLDER -o OUT' makes a PEFT folder of it."
    sharded = next((by for pattern, by in _SHARDED if any(map(pattern.fullmatch, names))), None)
    if sharded is not None:
        return f"What {sharded} left are parts to go on training from. Gather them, and save with save_pretrained."
    if any(map(_WHOLE_MODEL.fullmatch, names)):
        return "A whole model lies here. Serve it with 'amalgam serve FOLDER', or name the folder of an adapter."
    archive = next(filter(_ARCHIVE.fullmatch, names), None)
    if archive is not None:
        return f"Archives are not opened. Unpack {shown(archive)}, and name the folder in it that has the adapter."
    others = [name for name in names if name.lower().endswith(".safetensors")]
    if others:
        return f"If {shown(others[0])} holds its tensors, call it {WEIGHTS_FILE}."
    folders = [name for name in names if name.endswith("/")]
    if folders:
        return f"If it lies in a folder below, name that one, such as {shown(folders[0])}."
    return "Save the adapter with save_pretrained(safe_serialization=True)."


def no_config(names: Sequence[str]) -> Finding:
    """The finding about a folder that holds ``names`` and no config."""
    almost = next(filter(_CONFIG_ALMOST.fullmatch, names), None)
    step = "Save the adapter with PEFT." if almost is None else f"If {shown(almost)} is it, call it {CONFIG_FILE}."
    return Finding(code="missing_file", message=f"{CONFIG_FILE} is missing. {step}")


def _ignored(names: Sequence[str]) -> Finding:
    """The one warning about files that are not read."""
    listed = ", ".join(shown(name) for name in names[:_SHOWN_NAMES])
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    message = f"Not part of an adapter and left out: {listed}{more}."
    if any(name.startswith(("tokenizer", "chat_template")) for name in names):
        message += " The base model's tokenizer serves."
    if _TRAINED_BESIDE in names:
        message += f" What {_TRAINED_BESIDE} holds was trained without LoRA and is not applied."
    return Finding(code="file_ignored", severity="warning", message=message)


def refusal(name: str, beginning: bytes = b"") -> Finding | None:
    """Why a file that is read, called ``name`` and beginning with ``beginning``, must not come in; None where it may.

    Of the weights the beginning proves nothing: a header's length may begin like a pickle.
    """
    if not is_weights(name) and looks_pickled(beginning):
        return unsafe(name, "is a pickle by its first bytes, whatever its name. Remove it")
    return None


def looks_pickled(beginning: bytes) -> bool:
    """Whether a file begins as pickles do, bare (protocol 2 to 5) or in a zip archive as torch writes them."""
    return beginning.startswith((_ZIP_MAGIC, *_PICKLE_MAGIC))


def unsafe(name: str, reason: str) -> Finding:
    """The error about a file that must not come in at all."""
    return Finding(code="unsafe_format", message=f"{shown(name)} {reason}.")


def shown(name: str) -> str:
    """``name`` as it may stand in a message: quoted, and not at any length."""
    return repr(name if len(name) <= 128 else name[:128] + "…")
