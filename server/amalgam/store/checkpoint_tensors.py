"""Where the tensors of a checkpoint folder lie: one safetensors file, or many and an index. No weight is read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from amalgam.errors.adapters import BaseModelUnreadable, InvalidSafetensors
from amalgam.store.safetensors_header import TensorSpan, read_header

CONFIG: Final = "config.json"
INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
QUANTIZATION: Final = ("quantization_config", "compression_config")
"""They are the fields of a config that say how weights are quantised."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a checkpoint."""

    file: str
    """It is the name of the file it lies in."""
    span: TensorSpan

    @property
    def size_bytes(self) -> int:
        """The bytes of its values."""
        return self.span.end - self.span.start


def checkpoint_tensors(folder: Path) -> dict[str, StoredTensor] | None:
    """Every tensor of the checkpoint by name, file after file; None for a folder without safetensors files.

    Raises:
        BaseModelUnreadable: files that do not belong together, or cannot be read.
    """
    if (folder / INDEX).is_file():
        return _read_shards(folder, read_json(folder / INDEX))
    if (folder / SINGLE).is_file():
        return {name: StoredTensor(SINGLE, span) for name, span in _read(folder / SINGLE).items()}
    return None


def _read_shards(folder: Path, index: Mapping[str, Any]) -> dict[str, StoredTensor]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(_is_file_name(file) for file in weight_map.values()):
        raise BaseModelUnreadable(f"{INDEX} does not map tensors to files")
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(weight_map.values())):
        in_file = _read(folder / file)
        tensors |= {name: StoredTensor(file, span) for name, span in in_file.items() if weight_map.get(name) == file}
    missing = sorted(weight_map.keys() - tensors.keys())
    if missing:
        raise BaseModelUnreadable(f"{len(missing)} tensors of {INDEX} are in no file, {missing[0]!r} first")
    return tensors


def _is_file_name(value: Any) -> bool:
    return isinstance(value, str) and value.endswith(".safetensors") and "/" not in value


def _read(path: Path) -> dict[str, TensorSpan]:
    try:
        return read_header(path)
    except InvalidSafetensors as error:
        raise BaseModelUnreadable(f"{path.name}: {error.reason}") from error
    except OSError as error:
        raise BaseModelUnreadable(f"{path.name}: {error.strerror}") from error


def is_quantised(folder: Path) -> bool:
    """Whether the config in ``folder`` says that its weights are quantised; False where there is none."""
    if not (folder / CONFIG).is_file():
        return False
    return quantization_of(read_json(folder / CONFIG)) is not None


def needs_sixteen_bits(folder: Path) -> bool:
    """Whether vLLM on a CPU computes the model in 16 bits alone: quantised weights, or layers of linear attention.

    Its kernels for the latter, the gated delta rule of Qwen3-Next and Qwen3.5, take bfloat16 and nothing else there.
    """
    if not (folder / CONFIG).is_file():
        return False
    config = read_json(folder / CONFIG)
    inner = config.get("text_config")
    kinds = [section.get("layer_types") for section in (config, inner if isinstance(inner, dict) else {})]
    return quantization_of(config) is not None or any("linear_attention" in kind for kind in kinds if kind)


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a model's config says of how its weights are quantised; None where it says nothing.

    It stands at the top or in the part for text, and had another name in the first checkpoints of compressed-tensors.
    """
    inner = config.get("text_config")
    for section in (config, inner if isinstance(inner, dict) else {}):
        for field in QUANTIZATION:
            if section.get(field) is not None:
                return section[field] if isinstance(section[field], dict) else {}
    return None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        BaseModelUnreadable: it cannot be read, or is none.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise BaseModelUnreadable(f"{path.name}: {error.strerror}") from error
    except ValueError as error:
        raise BaseModelUnreadable(f"{path.name} is not JSON") from error
    if not isinstance(content, dict):
        raise BaseModelUnreadable(f"{path.name} is not a JSON object")
    return content
