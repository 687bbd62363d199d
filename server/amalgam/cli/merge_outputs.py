"""The form that a result is written in: PEFT's folder, mlx-lm's folder, llama.cpp's file, or kohya's."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from amalgam.errors.formats import UnsupportedTarget
from amalgam.errors.requests import FieldRefused

if TYPE_CHECKING:
    from torch import Tensor

    from amalgam.merge.sources import AdapterSink, TensorSource
    from amalgam.store.gguf_names import GgufModel
    from amalgam.store.kohya_files import Kernel

Form = Literal["peft", "mlx", "gguf", "kohya"]
FormOption = Annotated[
    Form | None,
    typer.Option("--format", help="peft, mlx, gguf (llama.cpp) or kohya; without it: by the end of -o and the inputs"),
]

_FILES: Final[Mapping[str, Form]] = {".gguf": "gguf", ".safetensors": "kohya"}
_ENDS: Final[Mapping[Form, str]] = {form: end for end, form in _FILES.items()}
_FLOAT32: Final = ("gguf", "mlx")
"""Readers of these forms compute from what is stored as it is, so that nothing is rounded unless it is asked for."""
LINEAGE_END: Final = ".lineage.json"


def target_of(out: Path, form: Form | None) -> tuple[Path, Form | None]:
    """The file or folder to write, and its form; None where the inputs decide, between PEFT's and kohya's.

    Args:
        out: What was asked for: a file by its ending; a folder holds a file of its own name where the form is one.
        form: What was asked for.

    Raises:
        FieldRefused: the ending belongs to another form.
    """
    told = _FILES.get(out.suffix.lower())
    if told is not None and form not in (None, told):
        raise FieldRefused("out", f"{str(out)!r} does not end as {form} does; name another, or another --format")
    if form is not None and form in _ENDS and told is None:
        return out / f"{out.absolute().name or 'adapter'}{_ENDS[form]}", form
    return out, form or told


def require_free(target: Path) -> None:
    """Refuse to write where an adapter lies already.

    Raises:
        FieldRefused: one does.
    """
    from amalgam.store.mlx_files import WEIGHTS as MLX_WEIGHTS
    from amalgam.store.tensor_files import WEIGHTS

    if target.is_file():
        raise FieldRefused("out", f"{target} is a file already. Name another place")
    if any((target / name).exists() for name in (WEIGHTS, MLX_WEIGHTS)):
        raise FieldRefused("out", f"{target} holds an adapter already. Name another folder")


def default_dtype(form: Form | None, dtype: str | None) -> str | None:
    """The type that a form has where none was asked for; None: the recipe's own."""
    return "float32" if dtype is None and form in _FLOAT32 else dtype


def sink_of(target: Path, form: Form | None, sources: "Mapping[str, TensorSource]", base: Path | None) -> "AdapterSink":
    """Where the result goes; whether it can is decided before anything is computed, as far as that is known.

    Raises:
        FieldRefused: the base model has to be named for that form.
        UnsupportedTarget: the form does not hold what the inputs adapt.
    """
    from amalgam.store.kohya_files import KohyaTensors
    from amalgam.store.tensor_files import FolderSink

    diffusion = [source for source in sources.values() if isinstance(source, KohyaTensors)]
    if form is None and diffusion:
        target, form = target_of(target, "kohya")
    if bool(diffusion) != (form == "kohya") or len(diffusion) not in (0, len(sources)):
        amount = "some" if diffusion and len(diffusion) < len(sources) else "all" if diffusion else "none"
        step = "Merge those alone, into a file that ends in .safetensors, and others into a folder."
        raise UnsupportedTarget(form or "peft", f"{amount} of its inputs are of diffusion models", step)
    if form == "kohya":
        require_free(target)
        return KohyaSink(target, _kernels(diffusion))
    if form == "gguf":
        return GgufSink(target, model_for(sources, base))
    return MlxSink(target) if form == "mlx" else FolderSink(target)


def _kernels(sources: "list[Any]") -> "Mapping[str, Kernel]":
    found: dict[str, Kernel] = {}
    for source in sources:
        for module in source.header.modules:
            kernel = source.kernels.get(module)
            if any(module in other.header.modules and other.kernels.get(module) != kernel for other in sources):
                raise UnsupportedTarget("kohya", f"{module[:128]} has kernels of several shapes", "Merge them apart.")
            if kernel is not None:
                found[module] = kernel
    return found


def model_for(sources: "Mapping[str, Any]", base: Path | None) -> "GgufModel":
    """What llama.cpp's form has to know: from ``--base``, from inputs of that form, or from the inputs' own base.

    Raises:
        FieldRefused: nobody says it.
        UnsupportedTarget: the base model's kind has no names there.
    """
    from amalgam.store.gguf_files import GgufTensors
    from amalgam.store.gguf_names import model_of

    if base is not None:
        return model_of(base)
    for source in sources.values():
        if isinstance(source, GgufTensors):
            return source.model
    for source in sources.values():
        folder = Path(source.header.base_model or "")
        if source.header.base_model and folder.is_dir():
            return model_of(folder)
    raise FieldRefused("base", "is needed for GGUF. Name the folder of the base model, or of its config.json alone")


class GgufSink:
    """A file of llama.cpp, and the lineage beside it."""

    def __init__(self, path: Path, model: "GgufModel") -> None:
        self.path = path
        self._model = model

    def write(
        self, tensors: "Mapping[str, tuple[Tensor, Tensor]]", config: Mapping[str, Any], lineage: Mapping[str, Any]
    ) -> None:
        """Write both. Raises UnsupportedTarget, OSError."""
        from amalgam.store.gguf_files import write_gguf
        from amalgam.store.loaded_tensors import written

        dtype = next(iter(tensors.values()))[0].dtype
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_gguf(self.path, written(tensors, config["base_model_name_or_path"]), self._model, dtype)
        _write_lineage(self.path.with_suffix(LINEAGE_END), lineage)


class KohyaSink:
    """A file of kohya, and the lineage beside it."""

    def __init__(self, path: Path, kernels: "Mapping[str, Kernel]") -> None:
        self.path = path
        self._kernels = kernels

    def write(
        self, tensors: "Mapping[str, tuple[Tensor, Tensor]]", config: Mapping[str, Any], lineage: Mapping[str, Any]
    ) -> None:
        """Write both. Raises UnsupportedTarget, OSError."""
        from amalgam.store.kohya_files import write_kohya
        from amalgam.store.loaded_tensors import written

        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_kohya(self.path, written(tensors, None), self._kernels)
        _write_lineage(self.path.with_suffix(LINEAGE_END), lineage)


class MlxSink:
    """A folder of mlx-lm, with the lineage in it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder

    def write(
        self, tensors: "Mapping[str, tuple[Tensor, Tensor]]", config: Mapping[str, Any], lineage: Mapping[str, Any]
    ) -> None:
        """Write both. Raises OSError."""
        from amalgam.store.loaded_tensors import written
        from amalgam.store.mlx_files import write_mlx
        from amalgam.store.tensor_files import LINEAGE

        write_mlx(self.path, written(tensors, config["base_model_name_or_path"]))
        _write_lineage(self.path / LINEAGE, lineage)


def _write_lineage(path: Path, lineage: Mapping[str, Any]) -> None:
    text = json.dumps(lineage, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
