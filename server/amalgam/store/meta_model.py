"""Tensors of a base model without safetensors files: its class is built on torch's meta device, without a weight."""

from pathlib import Path

from amalgam.errors.adapters import BaseModelUnreadable


def meta_shapes(model_dir: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of the model that ``config.json`` in ``model_dir`` describes.

    A tensor that two modules share (tied embeddings) is named once, by its first module, as a safetensors file of the
    model would. The class comes from transformers itself; code that lies beside the model is never run. A class that
    transformers fuses out of smaller tensors of the checkpoint (mixtures of experts) has the fused names here.

    Raises:
        BaseModelUnreadable: transformers does not know the architecture, or cannot build it from this config.
    """
    # Heavy, and needed for few models.
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(model_dir, trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        # Every model's code and every check of its config raises what it likes.
        reason = f"its folder holds no safetensors files, and its config does not say the shapes ({error})"
        raise BaseModelUnreadable(reason) from error
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
