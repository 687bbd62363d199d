"""Tiny models of many families, and random PEFT adapters for them, made on the spot: two layers, hidden size 64.

The classes, their names and their checkpoint formats are transformers' own; only sizes and weights are ours.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import PretrainedConfig, PreTrainedModel

VOCABULARY = 128
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}}
_INTERLEAVED = {"rope_parameters": {**_ROPE["rope_parameters"], "mrope_interleaved": True}}
"""As published checkpoints of Qwen3-VL say it: transformers does it unasked, vLLM where the config says so."""
_CLIP: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_IDEFICS: dict[str, Any] = {
    "text_config": {"model_type": "llama", **TEXT},
    "vision_config": {key: value for key, value in _CLIP.items() if key != "model_type"},
    "image_token_id": 5,
    "pad_token_id": 0,
    "scale_factor": 2,
}


@dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        model: transformers' class.
        config: transformers' configuration class, and what it is given.
        attention: modules of attention, by the last part of their names.
        older: patterns, with what replaces them, that make of today's module names those of an older transformers.
        experts: whether layers have routed experts.
        all_linear: whether PEFT adapts all of its linear modules.
    """

    model: str
    config: tuple[str, dict[str, Any]]
    attention: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    older: Mapping[str, str] = field(default_factory=dict)
    experts: bool = False
    all_linear: bool = True

    @property
    def sees(self) -> bool:
        """Whether it reads pictures."""
        return "vision_config" in self.config[1]

    @property
    def hears(self) -> bool:
        """Whether it reads sounds."""
        return not self.config[1].keys().isdisjoint({"audio_config", "encoder_config"})


_LLAVA_OLDER = {
    r"^model\.language_model\.": "language_model.model.",
    r"^lm_head": "language_model.lm_head",
    r"^model\.(vision_tower|multi_modal_projector)\.": r"\1.",
}
_QWEN_OLDER = {r"^model\.language_model\.": "model.", r"^model\.visual\.": "visual."}

FAMILIES: Mapping[str, Family] = {
    "llama": Family("LlamaForCausalLM", ("LlamaConfig", TEXT)),
    "llama_tied": Family("LlamaForCausalLM", ("LlamaConfig", {**TEXT, "tie_word_embeddings": True})),
    "qwen2": Family("Qwen2ForCausalLM", ("Qwen2Config", TEXT)),
    "qwen3": Family("Qwen3ForCausalLM", ("Qwen3Config", {**TEXT, "head_dim": 16})),
    "mistral": Family("MistralForCausalLM", ("MistralConfig", {**TEXT, "head_dim": 16})),
    "gemma2": Family("Gemma2ForCausalLM", ("Gemma2Config", {**TEXT, "head_dim": 16})),
    "gemma3_text": Family("Gemma3ForCausalLM", ("Gemma3TextConfig", {**TEXT, "head_dim": 16})),
    "phi3": Family("Phi3ForCausalLM", ("Phi3Config", TEXT), ("qkv_proj", "o_proj")),
    "granite": Family("GraniteForCausalLM", ("GraniteConfig", TEXT)),
    "olmo2": Family("Olmo2ForCausalLM", ("Olmo2Config", TEXT)),
    "cohere2": Family("Cohere2ForCausalLM", ("Cohere2Config", TEXT)),
    "smollm3": Family("SmolLM3ForCausalLM", ("SmolLM3Config", TEXT)),
    "starcoder2": Family("Starcoder2ForCausalLM", ("Starcoder2Config", TEXT)),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        ("GPTNeoXConfig", {k: v for k, v in TEXT.items() if k != "num_key_value_heads"}),
        ("query_key_value", "dense"),
    ),
    "opt": Family(
        "OPTForCausalLM",
        ("OPTConfig", {**TEXT, "ffn_dim": 96, "word_embed_proj_dim": 64}),
        ("q_proj", "k_proj", "v_proj", "out_proj"),
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        ("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 256}),
        ("c_attn", "c_proj"),
    ),
    "mixtral": Family(
        "MixtralForCausalLM",
        ("MixtralConfig", {**TEXT, "num_local_experts": 4, "num_experts_per_tok": 2}),
        experts=True,
    ),
    "qwen2_moe": Family(
        "Qwen2MoeForCausalLM",
        (
            "Qwen2MoeConfig",
            {
                **TEXT,
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 48,
                "shared_expert_intermediate_size": 48,
            },
        ),
        experts=True,
    ),
    "olmoe": Family(
        "OlmoeForCausalLM", ("OlmoeConfig", {**TEXT, "num_experts": 4, "num_experts_per_tok": 2}), experts=True
    ),
    "llava": Family(
        "LlavaForConditionalGeneration",
        (
            "LlavaConfig",
            {"text_config": {"model_type": "llama", **TEXT}, "vision_config": _CLIP, "image_token_index": 5},
        ),
        older=_LLAVA_OLDER,
    ),
    "gemma3": Family(
        "Gemma3ForConditionalGeneration",
        (
            "Gemma3Config",
            {
                "text_config": {"model_type": "gemma3_text", **TEXT, "head_dim": 16},
                "vision_config": {**_CLIP, "model_type": "siglip_vision_model", "vision_use_head": False},
                "mm_tokens_per_image": 4,
            },
        ),
        older=_LLAVA_OLDER,
    ),
    "mistral3": Family(
        "Mistral3ForConditionalGeneration",
        (
            "Mistral3Config",
            {
                "text_config": {"model_type": "mistral", **TEXT, "head_dim": 16},
                "vision_config": {**_CLIP, "model_type": "pixtral"},
            },
        ),
        older=_LLAVA_OLDER,
    ),
    "qwen2_vl": Family(
        "Qwen2VLForConditionalGeneration",
        (
            "Qwen2VLConfig",
            {
                "text_config": {**TEXT, **_ROPE},
                "vision_config": {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
            },
        ),
        older=_QWEN_OLDER,
    ),
    "qwen2_5_vl": Family(
        "Qwen2_5_VLForConditionalGeneration",
        (
            "Qwen2_5_VLConfig",
            {
                "text_config": {**TEXT, **_ROPE},
                "vision_config": {
                    "depth": 2,
                    "hidden_size": 32,
                    "out_hidden_size": 64,
                    "num_heads": 2,
                    "intermediate_size": 64,
                },
            },
        ),
        older=_QWEN_OLDER,
    ),
    "qwen3_vl": Family(
        "Qwen3VLForConditionalGeneration",
        (
            "Qwen3VLConfig",
            {
                "text_config": {**TEXT, "head_dim": 16, **_INTERLEAVED},
                "vision_config": {
                    "depth": 2,
                    "hidden_size": 32,
                    "out_hidden_size": 64,
                    "num_heads": 2,
                    "intermediate_size": 64,
                    "num_position_embeddings": 64,
                    "deepstack_visual_indexes": [0, 1],
                },
            },
        ),
        older=_QWEN_OLDER,
    ),
    "idefics3": Family("Idefics3ForConditionalGeneration", ("Idefics3Config", _IDEFICS)),
    "smolvlm": Family("SmolVLMForConditionalGeneration", ("SmolVLMConfig", _IDEFICS)),
}


def family_of(name: str) -> Family:
    """The row of that name, here or in `more_models`."""
    from tests.models.more_models import MORE

    return FAMILIES[name] if name in FAMILIES else MORE[name]


def of_vocabulary(row: Family, size: int) -> Family:
    """The family with another vocabulary, and with heads that are wide enough for vLLM's attention on CPU."""
    changed = {"vocab_size": size, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512}
    changed |= {"head_dim": 32}

    def grown(fields: dict[str, Any]) -> dict[str, Any]:
        return {
            key: grown(value) if isinstance(value, dict) else changed.get(key, value) for key, value in fields.items()
        }

    return replace(row, config=(row.config[0], grown(row.config[1])))


def build(family: str, seed: int = 0) -> PreTrainedModel:
    """The model with random weights, float32, in evaluation mode."""
    return build_row(family_of(family), seed)


def build_row(row: Family, seed: int = 0) -> PreTrainedModel:
    """`build`, of a row that need not be in the table."""
    config_class: Callable[..., PretrainedConfig] = getattr(transformers, row.config[0])
    torch.manual_seed(seed)
    model: PreTrainedModel = getattr(transformers, row.model)(config_class(**row.config[1]))
    return model.eval()


def write_model(family: str, folder: Path, seed: int = 0) -> PreTrainedModel:
    """Build the model, save it to ``folder`` as transformers does, and return it."""
    model = build(family, seed)
    model.save_pretrained(folder)
    return model


def write_adapter(
    model: PreTrainedModel, folder: Path, targets: Any, *, seed: int = 0, rank: int = 4, **options: Any
) -> torch.nn.Module:
    """Put a random LoRA on ``model``, save it to ``folder`` as PEFT does, and return PEFT's model, still with it.

    Args:
        model: changed in place.
        folder: of the adapter.
        targets: PEFT's ``target_modules``.
        seed: of the factors.
        rank: of every factor.
        options: further ones of PEFT's ``LoraConfig``.
    """
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, init_lora_weights=False, **options)
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(folder)
    evaluated: torch.nn.Module = adapted.eval()
    return evaluated


def respell(folder: Path, older: Mapping[str, str]) -> None:
    """Rename the modules of the saved adapter in ``folder`` as an older release of transformers named them."""
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    prefix = "base_model.model."
    renamed = {}
    for name, tensor in load_file(path).items():
        module = name.removeprefix(prefix)
        for pattern, replacement in older.items():
            changed = re.sub(pattern, replacement, module)
            if changed != module:
                module = changed
                break
        renamed[prefix + module] = tensor
    save_file(renamed, path, metadata={"format": "pt"})


def logits(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """[batch, length, vocabulary], of text alone."""
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=tokens).logits
    return found
