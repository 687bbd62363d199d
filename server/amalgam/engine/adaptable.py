"""Which modules of a base model vLLM puts LoRA on, asked of the worker that has built their layers.

A model's class tells a part of it only: which of embedding and output layer are taken, and of a model with parts that
see or hear not even that. Whatever no layer takes, vLLM leaves unread at a level of its log that is not shown.
"""

from collections.abc import Collection, Sequence
from typing import Any, Final

ASKED: Final = "amalgam.engine.adaptable.AskedWorker"
_METHOD: Final = "modules_without_lora"


class AskedWorker:
    """What vLLM mixes into its worker (``--worker-extension-cls``), whose methods its ``collective_rpc`` calls."""

    model_runner: Any

    def modules_without_lora(self, modules: Sequence[str]) -> list[str]:
        """Those of ``modules`` that no layer here takes factors for.

        Args:
            modules: as an adapter's file names them.
        """
        manager = self.model_runner.lora_manager._adapter_manager
        return left_over(modules, manager, getattr(manager.model, "hf_to_vllm_mapper", None))


def left_over(modules: Sequence[str], manager: Any, mapper: Any) -> list[str]:
    """Those of ``modules`` that are neither a layer of ``manager`` nor a part of one that is several in one.

    Such a layer is loaded by its parts alone. Of GLM-4 vLLM names ``gate_proj`` and ``up_proj``, where the model has
    ``gate_up_proj``, so that no adapter of it is loaded but on CPU, where `cpu.packed_names` puts it right.

    Args:
        modules: as an adapter's file names them.
        manager: vLLM's `LoRAModelManager`.
        mapper: from a checkpoint's names to those of vLLM's model; None where they are the same.
    """
    if getattr(manager, "is_pooling_model", False):
        # It has the model without its head, whose names lack what an adapter's begin with.
        return []
    from vllm.lora.lora_model import parse_fine_tuned_lora_name

    renames = None if mapper is None else mapper.get_rename_mapper()
    taken = {part for name in manager.modules for part in manager.packed_modules.get(name) or (name,)}
    return [
        module
        for module in modules
        if parse_fine_tuned_lora_name(f"base_model.model.{module}.lora_A.weight", renames)[0] not in taken
    ]


def taken_names(manager: Any) -> set[str]:
    """The layers of ``manager``, vLLM's `LoRAModelManager`, and the parts of those that are several in one."""
    packed = manager.packed_modules
    return set(manager.modules) | {part for name in manager.modules for part in packed.get(name, ())}


async def untaken(client: Any, modules: Collection[str]) -> frozenset[str]:
    """Those of ``modules`` that no worker of ``client`` takes factors for.

    Args:
        client: vLLM's, of a core whose workers are `AskedWorker`.
        modules: by the names that adapters have.
    """
    answers = await client.collective_rpc(_METHOD, args=(sorted(modules),))
    # A worker with some of the layers takes what lies in these.
    return frozenset(modules).intersection(*map(frozenset, answers))
