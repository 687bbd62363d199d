"""The base model as transformers loads it, and texts and chats as it reads them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from amalgam.domain.evaluation import EvaluationItem
from amalgam.errors import AmalgamError

MOST_TOKENS: Final = 1024
"""One prompt has at most so many, its first and last in equal parts."""


class LoadedBase:
    """A base model and its tokenizer.

    Args:
        folder: of the base model.
        dtype: what it computes in.
        refused: makes the error of a reason for which it cannot be read, or does not read something.

    Raises:
        AmalgamError: what ``refused`` makes.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, refused: Callable[[str], AmalgamError]) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._refused = refused
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        except Exception as error:
            # Every model's code and every check of its config raises what it likes.
            raise refused(f"transformers does not read the base model: {type(error).__name__}") from error

    def tokens(self, item: EvaluationItem, most: int = MOST_TOKENS) -> list[int]:
        """A chat in the base's template, where it has one, or else the text; of what is longer than ``most`` the ends.

        Raises:
            AmalgamError: the template takes no such chat.
        """
        try:
            if item.messages is not None and self.tokenizer.chat_template is not None:
                messages = [dict(message) for message in item.messages]
                found = list(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])
            else:
                said = item.prompt or "\n".join(message["content"] for message in item.messages or ())
                found = list(self.tokenizer(said)["input_ids"])
        except Exception as error:
            # A template is a program, and raises what it likes.
            raise self._refused(f"the base model's template does not take a prompt: {type(error).__name__}") from error
        half = most // 2
        return found if len(found) <= most else [*found[:half], *found[len(found) - (most - half) :]]
