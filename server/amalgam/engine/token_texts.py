"""Texts of single tokens, remembered.

With log-probs vLLM turns every alternative of every position into text by itself, on the event loop, and asks the
tokenizer several times where a character is cut into bytes. One question costs some ten microseconds, and the answers
are a pure function of the ids, so that remembering them takes most of the time away.
"""

from functools import lru_cache
from typing import Any, Final

from amalgam.engine.cpu import patches

_REMEMBERED: Final = 1 << 16
"""It is more than most vocabularies; about ten megabytes where it is full."""
_SHORT: Final = 5
"""One question has so many ids: a token with the four before it, of which its character may be a part."""


def remember_short_texts(tokenizer: Any) -> None:
    """Let ``tokenizer.decode``, a Hugging Face tokenizer's, answer from memory what it was asked before.

    Only plain questions about at most five ids are remembered; all others go to the tokenizer as they are.
    """
    decode = tokenizer.decode
    remembered = lru_cache(_REMEMBERED)(lambda ids: decode(list(ids)))

    def decode_short(token_ids: Any, *options: Any, **named: Any) -> Any:
        if options or named or type(token_ids) is not list or len(token_ids) > _SHORT:
            return decode(token_ids, *options, **named)
        return remembered(tuple(token_ids))

    patches.put("transformers:PreTrainedTokenizerBase.decode", decode_short, on=tokenizer)
