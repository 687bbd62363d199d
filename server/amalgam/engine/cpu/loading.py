"""How an adapter gets from its file into vLLM's slots on CPU: as it is stored, and converted once.

vLLM 0.32 reads an adapter tensor by tensor, converts it to the type it computes in, zeroes a slot of its stacked
tensors and copies the adapter there; our products would then copy it once more. All of that happens between two steps
of the engine's loop. Here the file is mapped, each layer is given the mapped factors, and `factors` converts
them into the form they are multiplied in, in the first step that needs them.

Methods of vLLM's classes are replaced for it, by the rows ``layers`` of `patches`, in the process that builds LoRA
layers, and only for the layers in `_taken`. Whatever else an adapter changes (embeddings, the head, experts, sharded
layers) goes vLLM's way.
"""

import functools
import mmap
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from vllm.lora import lora_model as models
from vllm.lora.layers import column_parallel_linear as columns
from vllm.lora.layers import replicated_linear, row_parallel_linear
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.lora_weights import LoRALayerWeights

from amalgam.engine.adaptable import taken_names
from amalgam.engine.cpu.files import Layouts, ModulePlaces, Naming
from amalgam.engine.cpu.module_values import look_up_by_name
from amalgam.engine.cpu.sources import PlaceholderStack, SlotContents, StoredPair

_WEIGHTS: Final = "adapter_model.safetensors"


def _taken(layer: Any) -> bool:
    """Whether the layer multiplies through `GroupedPunicaWrapper.add_lora_linear`, with whole factors."""
    return layer.tp_size == 1 and type(layer) in (
        replicated_linear.ReplicatedLinearWithLoRA,
        row_parallel_linear.RowParallelLinearWithLoRA,
        columns.ColumnParallelLinearWithLoRA,
        columns.MergedColumnParallelLinearWithLoRA,
        columns.QKVParallelLinearWithLoRA,
        columns.MergedQKVParallelLinearWithLoRA,
    )


def on_cpu(original: Any) -> Any:
    """Stands in for `_get_lora_device`, which asks a layer's weight; a layer of int8 may have given it away."""

    @functools.wraps(original)
    def device(base_layer: Any) -> Any:
        return torch.device("cpu") if getattr(base_layer, "weight", base_layer) is None else original(base_layer)

    return device


def mapped_checkpoint(original: Any) -> Any:
    """Stands in for `LoRAModel.from_local_checkpoint`."""
    layouts = Layouts()

    @functools.wraps(original)
    def load(lora_dir: str, expected_lora_modules: set[str], peft_helper: Any, **options: Any) -> Any:
        look_up_by_name(peft_helper)
        path, number = os.path.join(lora_dir, _WEIGHTS), options.get("lora_model_id")
        special = options.get("moe_ep_spec"), options.get("skip_prefixes"), peft_helper.modules_to_save, number is None
        naming = _naming(expected_lora_modules, options.get("weights_mapper"))
        mapped = None if any(special) or not os.path.isfile(path) else layouts.map(path, naming)
        if mapped is None:
            # vLLM's own way, which also says what is wrong where something is.
            return original(lora_dir, expected_lora_modules, peft_helper, **options)
        file, layout = mapped
        loras = {places.name: _weights(peft_helper, file, places) for places in layout}
        return models.LoRAModel(number, peft_helper.r, loras)

    return load


def _naming(modules: set[str], mapper: Any) -> Naming:
    def parse(name: str) -> tuple[str, str, bool]:
        module, is_a = models.parse_fine_tuned_lora_name(name, mapper)
        stored, _ = models.parse_fine_tuned_lora_name(name)
        return module, stored, is_a

    return Naming(frozenset(modules), repr(mapper), parse)


def _weights(peft_helper: Any, file: mmap.mmap, places: ModulePlaces) -> LoRALayerWeights:
    """One module's, with a `StoredPair` in the place of either factor, which has the scale."""
    weights = LoRALayerWeights.from_config(places.name, peft_helper, places.stored)
    pair = StoredPair(places.a.read(file), places.b.read(file), float(weights.scaling))
    weights.lora_a, weights.lora_b, weights.scaling = pair, pair, 1
    return weights


def kept_scales(original: Any) -> Any:
    """Stands in for `LoRAModelManager._create_merged_loras_inplace`, which multiplies each B by its scale."""

    @functools.wraps(original)
    def merge(manager: Any, lora_model: Any) -> None:
        taken = _taken_names(manager.modules, manager.packed_modules)
        dtype = manager.lora_config.lora_dtype
        for name, weights in lora_model.loras.items():
            if weights.is_packed:
                continue
            stored = isinstance(weights.lora_b, StoredPair)
            if name in taken and not stored:
                weights.lora_b = StoredPair.of(weights.lora_a, weights.lora_b, float(weights.scaling))
                weights.scaling = 1
            elif stored and name not in taken:
                weights.lora_a, weights.lora_b = (factor.to(dtype) for factor in weights.lora_b.tensors())
        original(manager, lora_model)

    return merge


def _taken_names(modules: Mapping[str, Any], packed: Mapping[str, list[str]]) -> set[str]:
    """What adapters call the layers that are `_taken`: by their names, and by those of the modules packed into them."""
    names = {name for name, layer in modules.items() if isinstance(layer, BaseLinearLayerWithLoRA) and _taken(layer)}
    return names | {part for name in names for part in packed.get(name, ())}


def without_stacks(original: Any) -> Any:
    """Stands in for the layers' `create_lora_weights`: one slot's tensors are made for their shapes, and let go."""

    @functools.wraps(original)
    def create(layer: Any, max_loras: int, lora_config: Any, model_config: Any = None) -> None:
        if not _taken(layer):
            original(layer, max_loras, lora_config, model_config)
            return
        original(layer, 1, lora_config, model_config)
        contents = SlotContents()
        layer.lora_a_stacked = PlaceholderStack(layer.lora_a_stacked, max_loras, contents)
        layer.lora_b_stacked = PlaceholderStack(layer.lora_b_stacked, max_loras, contents)

    return create


def storing(original: Any) -> Any:
    """Stands in for the layers' `set_lora`."""

    @functools.wraps(original)
    def put(layer: Any, index: int, lora_a: Any, lora_b: Any) -> None:
        if not isinstance(layer.lora_a_stacked, PlaceholderStack):
            original(layer, index, lora_a, lora_b)
            return
        if not isinstance(lora_a, list):
            lora_a, lora_b = [lora_a], [lora_b]
        if len(lora_b) != layer.n_slices:
            # One adapted module covers several slices; vLLM knows how to split what it can slice.
            whole = [b.tensors() if isinstance(b, StoredPair) else (a, b) for a, b in zip(lora_a, lora_b, strict=True)]
            lora_a, lora_b = layer.expand_packed_lora([a for a, _ in whole], [b for _, b in whole])
        pairs = list(map(_pair, lora_a, lora_b))
        for part, pair in enumerate(pairs):
            if pair is not None:
                # The loops that copy these trust their shapes.
                _check_shapes(layer, part, pair.a.shape, pair.b.shape)
        layer.lora_a_stacked.contents.put(index, pairs)

    return put


def check_fit(manager: Any, lora_model: Any) -> None:
    """Whether an adapter that was read fits the layers it is for, and all of it is for one, before a step finds out.

    Args:
        manager: vLLM's `LoRAModelManager`. lora_model: not yet merged.

    Raises:
        ValueError: a factor has another shape than its layer, or no layer takes it.
    """
    _refuse_leftovers(manager, lora_model)
    for name, layer in manager.modules.items():
        parts = manager.packed_modules.get(name, [name])
        if not isinstance(getattr(layer, "lora_a_stacked", None), PlaceholderStack) or len(parts) != layer.n_slices:
            continue
        for part, inner in enumerate(parts):
            weights = lora_model.loras.get(inner)
            if weights is not None:
                b = weights.lora_b
                a, b = (b.a, b.b) if isinstance(b, StoredPair) else (weights.lora_a, b)
                _check_shapes(layer, part, a.shape, b.shape)


def _refuse_leftovers(manager: Any, lora_model: Any) -> None:
    """VLLM drops what no layer takes, at a level of its log that is not shown."""
    taken = taken_names(manager)
    left = sorted(name for name in lora_model.loras if name not in taken)
    if left and not getattr(manager, "is_pooling_model", False):
        shown = ", ".join(left[:4]) + (f" and {len(left) - 4} more" if len(left) > 4 else "")
        raise ValueError(f"no layer of the model takes the factors of {shown}")


def _check_shapes(layer: Any, part: int, a: Sequence[int], b: Sequence[int]) -> None:
    _, _, largest, width_in = layer.lora_a_stacked[part].shape
    width = layer.lora_b_stacked[part].shape[2]
    rank = a[0]
    if tuple(a) != (rank, width_in) or tuple(b) != (width, rank) or rank > largest:
        raise ValueError(
            f"factors of {list(a)} and {list(b)} do not fit a layer of {width_in} inputs, {width} outputs and ranks up "
            f"to {largest}"
        )


def _pair(a: Tensor | None, b: StoredPair | Tensor | None) -> StoredPair | None:
    """What the layer was given for one slice; vLLM's dummies and what was packed elsewhere come without a scale."""
    if a is None or b is None:
        return None
    return b if isinstance(b, StoredPair) else StoredPair.of(a, b, 1.0)


def storing_nothing(original: Any) -> Any:
    """Stands in for the layers' `reset_lora`."""

    @functools.wraps(original)
    def clear(layer: Any, index: int) -> None:
        if isinstance(layer.lora_a_stacked, PlaceholderStack):
            layer.lora_a_stacked.contents.put(index, [None] * layer.n_slices)
        else:
            original(layer, index)

    return clear
