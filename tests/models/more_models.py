"""Families beside those of `tiny_models`, which are checked with ``make test-models``: other names of modules, fused
products, state spaces, compressed attention, experts in parameters of their own, encoders.
"""

from collections.abc import Mapping
from typing import Any

from tests.models.tiny_models import TEXT, VOCABULARY, Family

_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}
_DENSE_FIRST = {"mlp_layer_types": ["dense", "sparse"]}
_LATENT: dict[str, Any] = {
    **TEXT, **_EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1,
    "topk_group": 1, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 16, "num_key_value_heads": 4,
}  # fmt: skip
_OF_LATENT = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
_NEO: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_HEARING: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_mel_bins": 16,
}  # fmt: skip
_HEARING_OLDER = {
    r"^model\.language_model\.": "language_model.model.",
    r"^lm_head": "language_model.lm_head",
    r"^model\.(audio_tower|multi_modal_projector|encoder|projector)\.": r"\1.",
}

MORE: Mapping[str, Family] = {
    "gemma": Family("GemmaForCausalLM", ("GemmaConfig", {**TEXT, "head_dim": 16})),
    "olmo": Family("OlmoForCausalLM", ("OlmoConfig", TEXT)),
    "stablelm": Family("StableLmForCausalLM", ("StableLmConfig", TEXT)),
    "phi": Family("PhiForCausalLM", ("PhiConfig", TEXT), ("q_proj", "k_proj", "v_proj", "dense")),
    "glm4": Family("Glm4ForCausalLM", ("Glm4Config", {**TEXT, "head_dim": 16})),
    "cohere": Family("CohereForCausalLM", ("CohereConfig", TEXT)),
    "nemotron": Family("NemotronForCausalLM", ("NemotronConfig", TEXT)),
    "falcon": Family(
        "FalconForCausalLM",
        ("FalconConfig", {**_NEO, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}),
        ("query_key_value", "dense"),
    ),
    "bloom": Family(
        "BloomForCausalLM", ("BloomConfig", {**_NEO, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
        ("query_key_value", "dense"),
    ),
    "gptj": Family(
        "GPTJForCausalLM",
        ("GPTJConfig", {**_NEO, "n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_positions": 256}),
        ("q_proj", "k_proj", "v_proj", "out_proj"),
    ),
    "gpt_bigcode": Family(
        "GPTBigCodeForCausalLM",
        ("GPTBigCodeConfig", {**_NEO, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}),
        ("c_attn", "c_proj"),
    ),
    "mpt": Family(
        "MptForCausalLM",
        ("MptConfig", {**_NEO, "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}),
        ("Wqkv", "out_proj"),
    ),
    "mamba": Family(
        "MambaForCausalLM",
        ("MambaConfig", {**_NEO, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}),
        ("in_proj", "x_proj"),
        all_linear=False,
    ),
    "jamba": Family(
        "JambaForCausalLM",
        (
            "JambaConfig",
            {
                **TEXT, "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
                "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8, "use_mamba_kernels": False,
            },
        ),
        experts=True,
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM", ("Qwen3MoeConfig", {**TEXT, **_EXPERTS, "num_experts": 4, "head_dim": 16}), experts=True
    ),
    "deepseek_v2": Family("DeepseekV2ForCausalLM", ("DeepseekV2Config", _LATENT), _OF_LATENT, experts=True),
    "deepseek_v3": Family("DeepseekV3ForCausalLM", ("DeepseekV3Config", _LATENT), _OF_LATENT, experts=True),
    "laguna": Family(
        "LagunaForCausalLM",
        (
            "LagunaConfig",
            {
                **TEXT, **_EXPERTS, **_DENSE_FIRST, "num_experts": 4, "shared_expert_intermediate_size": 48,
                "head_dim": 16, "num_attention_heads_per_layer": [4, 4],
                "layer_types": ["full_attention", "sliding_attention"],
            },
        ),
        experts=True,
    ),
    "hy_v3": Family(
        "HYV3ForCausalLM",
        ("HYV3Config", {**TEXT, **_EXPERTS, **_DENSE_FIRST, "num_experts": 4, "num_local_experts": 4, "head_dim": 16}),
        experts=True,
    ),
    "nemotron_h": Family(
        "NemotronHForCausalLM",
        (
            "NemotronHConfig",
            {
                **TEXT, "head_dim": 16, "layers_block_type": ["mamba", "attention"], "mamba_num_heads": 4,
                "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1,
            },
        ),
        all_linear=False,
    ),
    "qwen3_5": Family(
        "Qwen3_5ForCausalLM",
        (
            "Qwen3_5TextConfig",
            {
                **TEXT, "head_dim": 16, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
                "linear_key_head_dim": 16, "linear_value_head_dim": 16,
                "layer_types": ["linear_attention", "full_attention"],
            },
        ),
    ),
    "gemma4": Family(
        "Gemma4ForCausalLM",
        (
            "Gemma4TextConfig",
            {
                **TEXT, "head_dim": 16, "global_head_dim": 16, "vocab_size_per_layer_input": VOCABULARY,
                "hidden_size_per_layer_input": 16, "layer_types": ["sliding_attention", "full_attention"],
                "num_kv_shared_layers": 0,
            },
        ),
    ),
    "llama4": Family(
        "Llama4ForConditionalGeneration",
        (
            "Llama4Config",
            {
                "text_config": {
                    **TEXT, "intermediate_size_mlp": 96, "num_local_experts": 4, "num_experts_per_tok": 2,
                    "head_dim": 16,
                },
                "vision_config": {
                    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                    "image_size": 28, "patch_size": 14, "vision_output_dim": 32, "projector_input_dim": 32,
                    "projector_output_dim": 32,
                },
            },
        ),
        experts=True,
    ),
    "phimoe": Family(
        "PhimoeForCausalLM", ("PhimoeConfig", {**TEXT, "num_local_experts": 4, "num_experts_per_tok": 2}), experts=True
    ),
    "granitemoe": Family(
        "GraniteMoeForCausalLM",
        ("GraniteMoeConfig", {**TEXT, "num_local_experts": 4, "num_experts_per_tok": 2}),
        experts=True,
    ),
    "gpt_oss": Family(
        "GptOssForCausalLM",
        ("GptOssConfig", {**TEXT, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}),
        experts=True,
    ),
    "audioflamingo3": Family(
        "AudioFlamingo3ForConditionalGeneration",
        (
            "AudioFlamingo3Config",
            {"text_config": {"model_type": "qwen2", **TEXT}, "audio_config": _HEARING, "audio_token_id": 5},
        ),
        older=_HEARING_OLDER,
    ),
    "voxtral": Family(
        "VoxtralForConditionalGeneration",
        (
            "VoxtralConfig",
            {"text_config": {"model_type": "llama", **TEXT}, "audio_config": _HEARING, "audio_token_id": 5},
        ),
        older=_HEARING_OLDER,
    ),
    "qwen2_audio": Family(
        "Qwen2AudioForConditionalGeneration",
        (
            "Qwen2AudioConfig",
            {
                "text_config": {"model_type": "qwen2", **TEXT}, "audio_token_index": 5,
                "audio_config": {
                    "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64,
                    "num_mel_bins": 16,
                },
            },
        ),
        older=_HEARING_OLDER,
    ),
    "granite_speech": Family(
        "GraniteSpeechForConditionalGeneration",
        (
            "GraniteSpeechConfig",
            {
                "text_config": {"model_type": "granite", **TEXT}, "audio_token_index": 5,
                "encoder_config": {
                    "input_dim": 16, "num_layers": 2, "hidden_dim": 32, "feedforward_mult": 2, "num_heads": 2,
                    "dim_head": 16, "output_dim": 8, "context_size": 20, "max_pos_emb": 32,
                },
                "projector_config": {
                    "model_type": "blip_2_qformer", "hidden_size": 32, "num_hidden_layers": 1,
                    "num_attention_heads": 2, "intermediate_size": 32, "encoder_hidden_size": 32,
                },
            },
        ),
        older=_HEARING_OLDER,
    ),
    "bert": Family(
        "BertForMaskedLM",
        ("BertConfig", {k: v for k, v in TEXT.items() if k != "num_key_value_heads"}),
        ("query", "key", "value"),
    ),
}  # fmt: skip
