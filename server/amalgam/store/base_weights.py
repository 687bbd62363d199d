"""Reads single weights of a base model's folder, for what cannot be converted without them."""

from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from amalgam.errors.adapters import BaseModelUnreadable
from amalgam.store.checkpoint_tensors import checkpoint_tensors


class BaseWeights:
    """The linear weights of a checkpoint folder, read one at a time.

    Raises:
        BaseModelUnreadable: the folder has no safetensors files, or they do not belong together.
    """

    def __init__(self, folder: Path) -> None:
        found = checkpoint_tensors(folder)
        if found is None:
            raise BaseModelUnreadable(f"{folder.name} has no safetensors files")
        self._folder = folder
        self._tensors = found

    def of(self, module: str) -> Tensor:
        """``weight`` [out, in] of a module, in the stored dtype.

        Raises:
            BaseModelUnreadable: there is no such module.
        """
        name = f"{module}.weight"
        if name not in self._tensors:
            raise BaseModelUnreadable(f"it has no module {module}")
        with safe_open(self._folder / self._tensors[name].file, framework="pt") as file:
            found: Tensor = file.get_tensor(name)
            return found
