"""A Llama of four layers that reads bytes, as a folder: small, and transformers loads it as it does any other."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}{% if add_generation_prompt %}:{% endif %}"


def write_reading_base(
    folder: Path,
    dtype: torch.dtype = torch.bfloat16,
    *,
    template: str | None = TEMPLATE,
    context_tokens: int = 2048,
    end: int | None = None,
) -> Path:
    """Write it to ``folder``; its chat template puts a message between <> and ends with a colon."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.chat_template = template
    fast.save_pretrained(folder)
    shape = LlamaConfig(
        vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=context_tokens, initializer_range=0.3, bos_token_id=None,
        eos_token_id=end,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(shape).to(dtype).save_pretrained(folder)
    return folder
