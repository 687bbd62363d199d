"""Reads single weights of a base model's folder, for what cannot be converted without them."""

from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from amalgam.errors.adapters import BaseModelUnreadable
from amalgam.store.checkpoint_tensors import CONFIG, checkpoint_tensors, read_json
from amalgam.store.linear_modules import linear_modules


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
        self._modules = linear_modules(folder, read_json(folder / CONFIG), found)

    def of(self, module: str) -> Tensor:
        """``weight`` [out, in] of a module, in the stored dtype.

        Raises:
            BaseModelUnreadable: there is no such module, or it is quantised.
        """
        linear = self._modules.get(module)
        if linear is None:
            raise BaseModelUnreadable(f"it has no module {module}")
        if linear.is_packed:
            raise BaseModelUnreadable(f"its module {module} is quantised")
        name = linear.tensor
        with safe_open(self._folder / self._tensors[name].file, framework="pt") as file:
            found: Tensor = file.get_tensor(name) if linear.expert is None else file.get_slice(name)[linear.expert]
            return found.T if linear.is_transposed else found
