"""Whether a base model's own chat template makes prompts of conversations: there is one, and it can be read."""

from typing import Any, Final

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from vllm.renderers.hf import ChatTemplateResolutionError, resolve_chat_template, resolve_chat_template_kwargs

UNUSABLE: Final = (ChatTemplateResolutionError, TemplateError)
"""Vllm's renderer raises these where there is no template, or none that can be read; what one that can be read comes to
is told as another kind of error."""


def why_no_conversations(model_config: Any, tokenizer: Any, given: str | None = None) -> str | None:
    """Why conversations without tools have no template, without a full stop; None where they have one, or need none.

    A model that answers nothing needs none, and so does a tokenizer of a kind that makes prompts by itself.

    Args:
        model_config: vLLM's of the base model.
        tokenizer: as vLLM has it, or None.
        given: a template that stands in the place of the model's own.
    """
    if model_config.runner_type != "generate" or not isinstance(tokenizer, PreTrainedTokenizerBase):
        return None
    try:
        template = resolve_chat_template(tokenizer, given, None, model_config=model_config)
        if template is None:
            return why_unusable(ChatTemplateResolutionError())
        resolve_chat_template_kwargs(tokenizer, template, {})
    except UNUSABLE as error:
        return why_unusable(error)
    return None


def why_unusable(error: Exception) -> str:
    """The reason of one of `UNUSABLE`, without a full stop."""
    if isinstance(error, ChatTemplateResolutionError):
        return "the base model has no chat template"
    # Jinja's own text goes on with the place in a file that there is none of.
    text = str(getattr(error, "message", None) or error).rstrip(".")
    line = getattr(error, "lineno", None)
    return f"the base model's chat template cannot be read: {text}{f' (line {line})' if line else ''}"
