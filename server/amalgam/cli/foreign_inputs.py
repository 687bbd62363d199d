"""Inputs of a merge that PEFT did not write: which they are, by what lies there, and their own readers."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from amalgam.errors.requests import FieldRefused

if TYPE_CHECKING:
    from amalgam.merge.sources import TensorSource
    from amalgam.store.gguf_names import GgufModel

_PEFT_FILES: Final = ("adapter_config.json", "adapter_model.safetensors")


def open_foreign(name: str, path: Path, base: Path | None) -> "TensorSource | None":
    """The adapter at ``path`` where it is llama.cpp's, mlx-lm's or a diffusion model's; None for PEFT's own reader.

    Args:
        name: As the recipe has it, for errors.
        path: A folder or a file.
        base: Folder of the base model, where it was named.

    Raises:
        FieldRefused: there is nothing, or a file that is no adapter by itself.
        AmalgamError: as the readers raise.
        OSError: a file cannot be read.
    """
    from amalgam.store.gguf_files import SUFFIX as GGUF
    from amalgam.store.gguf_files import open_gguf
    from amalgam.store.kohya_files import is_kohya, open_kohya
    from amalgam.store.mlx_files import is_mlx, open_mlx

    if path.is_dir() and is_mlx(path) and not (path / _PEFT_FILES[1]).exists():
        return open_mlx(name, path)
    file = _only_file(name, path)
    if file is None:
        return None
    if file.suffix.lower() == GGUF:
        return open_gguf(name, file, _model(base))
    if is_kohya(file):
        return open_kohya(name, file)
    if path.is_dir():
        return None
    raise FieldRefused("inputs", f"{name!r} is a part of an adapter. Name the folder that it lies in")


def _only_file(name: str, path: Path) -> Path | None:
    """The one file that is an adapter: ``path`` itself, or what a folder holds instead of PEFT's files."""
    if path.is_file():
        if path.suffix.lower() in (".gguf", ".safetensors"):
            return path
        reason = f"{name!r} is no adapter. Name a PEFT folder, or a file that ends in .gguf or .safetensors"
        raise FieldRefused("inputs", reason)
    if not path.is_dir():
        raise FieldRefused("inputs", f"{name!r} is no folder. Name the folder of a PEFT adapter")
    if any((path / file).exists() for file in _PEFT_FILES):
        return None
    found = sorted(file for end in ("*.gguf", "*.safetensors") for file in path.glob(end) if file.is_file())
    # Shards are PEFT's; whatever is wrong with them is for its reader to say.
    found = [file for file in found if not file.name.startswith("adapter_model")]
    if len(found) > 1:
        listed = ", ".join(file.name for file in found[:3])
        raise FieldRefused("inputs", f"{name!r} holds {len(found)} files of weights ({listed}). Name one of them")
    return found[0] if found else None


def _model(base: Path | None) -> "GgufModel | None":
    from amalgam.store.gguf_names import model_of

    return None if base is None else model_of(base)
