"""Reads single weights of a base model's folder, for what cannot be converted without them."""

from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from amalgam.errors.adapters import BaseModelUnreadable
from amalgam.errors.internal import UnpackingFault
from amalgam.store.checkpoint_tensors import CONFIG, checkpoint_tensors, read_json
from amalgam.store.linear_modules import LinearModule, linear_modules
from amalgam.store.packings import packing_of
from amalgam.store.unpacked_weights import UnpackedWeight


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
        self._config = read_json(folder / CONFIG)
        self._modules = linear_modules(folder, self._config, found)

    def of(self, module: str) -> Tensor:
        """``weight`` [out, in] of a module, in the stored dtype; float32 of one that is quantised.

        Raises:
            BaseModelUnreadable: there is no such module, or it is quantised in a way that is not known here.
        """
        linear = self._modules.get(module)
        if linear is None:
            raise BaseModelUnreadable(f"it has no module {module}")
        if linear.is_packed:
            return self._unpacked(linear)
        name = linear.tensor
        with safe_open(self._folder / self._tensors[name].file, framework="pt") as file:
            found: Tensor = file.get_tensor(name) if linear.expert is None else file.get_slice(name)[linear.expert]
            return found.T if linear.is_transposed else found

    def _unpacked(self, linear: LinearModule) -> Tensor:
        raw: dict[str, bytes] = {}
        try:
            packing = packing_of(self._config, linear)
            for part, stored in packing.parts.items():
                with (self._folder / stored.file).open("rb") as file:
                    file.seek(stored.span.start)
                    raw[part] = file.read(stored.size_bytes)
            outputs = packing.shape[0]
            return UnpackedWeight(packing, raw).rows((linear.expert or 0) * outputs, outputs)
        except UnpackingFault as fault:
            raise BaseModelUnreadable(str(fault)) from fault
