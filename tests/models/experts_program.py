"""Prints how far a block of routed experts in vLLM, on CPU with LoRA on, is from transformers' own.

A program of its own, because it replaces functions of vLLM for the rest of its process.
"""

import sys

import torch
from transformers import AutoModelForCausalLM
from vllm.config import set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.forward_context import set_forward_context
from vllm.lora import model_manager
from vllm.model_executor.model_loader import get_model
from vllm.platforms import current_platform

from amalgam.engine.cpu.plugin import install


def block_of(model: torch.nn.Module) -> torch.nn.Module:
    """The first layer's experts with what routes to them, whatever the family calls it."""
    layer = model.model.layers[0]  # type: ignore[union-attr, index]
    block: torch.nn.Module = getattr(layer, "mlp", None) or layer.block_sparse_moe  # type: ignore[union-attr]
    return block


def main(folder: str) -> None:
    """Compare the model in ``folder``."""
    install()
    install()
    current_platform.register_triton_kernel_overrides()
    arguments = EngineArgs(folder, dtype="float32", enable_lora=True, max_lora_rank=16, enforce_eager=True)
    config = arguments.create_engine_config()
    # vLLM's loader empties the cache of an accelerator that a CPU does not have; its CPU worker does the same.
    torch.accelerator.empty_cache = lambda: None
    hidden = torch.randn(5, config.model_config.get_hidden_size(), generator=torch.Generator().manual_seed(0))
    with set_current_vllm_config(config), torch.inference_mode():
        init_distributed_environment(1, 0, f"file://{folder}/meeting", 0, "gloo")
        initialize_model_parallel(1, 1)
        model = get_model(vllm_config=config)
        size = config.model_config.get_vocab_size()
        manager = model_manager.create_lora_manager(model, 8, 64, size, config.lora_config, config, torch.device("cpu"))
        with set_forward_context(None, config):
            ours = block_of(model)(hidden)
        theirs = block_of(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())(hidden[None])
    expected = (theirs[0] if isinstance(theirs, tuple) else theirs).view_as(ours)
    sys.stdout.write(f"difference={(ours - expected).abs().max() / expected.abs().max()}\n")
    sys.stdout.write(f"wrapped={','.join(sorted({name.rpartition('.')[2] for name in manager.modules}))}\n")


if __name__ == "__main__":
    main(sys.argv[1])
