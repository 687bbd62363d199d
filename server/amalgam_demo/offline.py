"""Answers of the base model, with or without an adapter, from transformers alone: for tuning, without a server."""

from collections.abc import Sequence
from pathlib import Path

from amalgam_demo.task_item import TaskItem


def offline_answers(
    items: Sequence[TaskItem], base: Path, adapter: Path | None, *, max_tokens: int = 96, batch: int = 25
) -> list[str]:
    """The greedy answer to every item, in the items' order.

    Args:
        items: The questions.
        base: Folder of the converted base model.
        adapter: PEFT folder to put on it; None for the base model alone.
        max_tokens: Longest answer, tokens.
        batch: Questions answered at a time.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    model = model.float().eval()
    answers: list[str] = []
    for start in range(0, len(items), batch):
        chats = [item.messages for item in items[start : start + batch]]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
        )
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        answers.extend(tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return answers
