"""Checks of single fields: each raises FieldRefused with the field's name and its bounds, never with its value."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from amalgam.errors.requests import FieldRefused

Check = Callable[[str, Any], None]

MAX_NESTING: Final = 32
MAX_STOPS: Final = 16
MAX_PROMPTS: Final = 64
MAX_PROMPT_TOKENS: Final = 1 << 20
_MAX_BIASES: Final = 1024
_TOKEN_DIGITS: Final = 10


def number(low: float, high: float) -> Check:
    """A finite number within ``[low, high]``."""

    def check(name: str, value: Any) -> None:
        # An integer may be too large for a float, so its bounds come before any question about floats.
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or (isinstance(value, float) and not math.isfinite(value)):
            raise FieldRefused(name, "must be a finite number")
        if not low <= value <= high:
            raise FieldRefused(name, f"must be between {low:g} and {high:g}")

    return check


def integer(low: int, high: int) -> Check:
    """An integer within ``[low, high]``."""

    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise FieldRefused(name, "must be an integer")
        if not low <= value <= high:
            raise FieldRefused(name, f"must be between {low} and {high}")

    return check


def text(limit: int) -> Check:
    """A string of at most ``limit`` characters."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, str):
            raise FieldRefused(name, "must be a string")
        if len(value) > limit:
            raise FieldRefused(name, f"must have at most {limit} characters")

    return check


def boolean(name: str, value: Any) -> None:
    """True or false, and not 1 or "true"."""
    if not isinstance(value, bool):
        raise FieldRefused(name, "must be true or false")


def mapping(name: str, value: Any) -> Mapping[str, Any]:
    """A JSON object, handed back."""
    if not isinstance(value, dict):
        raise FieldRefused(name, "must be an object")
    return value


def array(limit: int, of: Check | None = None) -> Check:
    """A list of at most ``limit`` entries, each of which passes ``of``."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, list):
            raise FieldRefused(name, "must be a list")
        if len(value) > limit:
            raise FieldRefused(name, f"must have at most {limit} entries")
        if of is not None:
            for entry in value:
                of(name, entry)

    return check


def shallow(name: str, value: Any) -> None:
    """Any JSON that is not nested so deeply that walking it is an attack."""
    level = [value]
    for _ in range(MAX_NESTING):
        level = [c for v in level for c in (v.values() if isinstance(v, dict) else v if isinstance(v, list) else ())]
        if not level:
            return
    raise FieldRefused(name, f"must not be nested deeper than {MAX_NESTING}")


def stops(name: str, value: Any) -> None:
    """One stop string or a few; an empty one would stop at once."""
    values = value if isinstance(value, list) else [value]
    array(MAX_STOPS, text(256))(name, values)
    if "" in values:
        raise FieldRefused(name, "must not hold an empty string")


def token_ids(limit: int) -> Check:
    """A list of token ids; whether the vocabulary has them is asked by `check_fields`."""
    return array(limit, integer(0, (1 << 31) - 1))


def logit_bias(name: str, value: Any) -> None:
    """Token ids, as strings, to numbers within [-100, 100]."""
    biases = mapping(name, value)
    if len(biases) > _MAX_BIASES:
        raise FieldRefused(name, f"must have at most {_MAX_BIASES} entries")
    for token, bias in biases.items():
        if not token.isascii() or not token.isdigit() or len(token) > _TOKEN_DIGITS:
            raise FieldRefused(name, "keys must be token ids")
        number(-100, 100)(name, bias)


def prompts(name: str, value: Any) -> None:
    """A text, a list of texts, the token ids of a prompt, or a list of such lists; none of them empty."""
    if isinstance(value, str):
        return
    array(MAX_PROMPT_TOKENS)(name, value)
    if not value:
        raise FieldRefused(name, "must not be empty")
    if isinstance(value[0], int):
        token_ids(MAX_PROMPT_TOKENS)(name, value)
        return
    array(MAX_PROMPTS)(name, value)
    one = text(1 << 22) if isinstance(value[0], str) else token_ids(MAX_PROMPT_TOKENS)
    for prompt in value:
        one(name, prompt)
        if not prompt:
            raise FieldRefused(name, "must not hold an empty prompt")


def prompt_count(value: Any) -> int:
    """How many prompts a checked value is."""
    return len(value) if isinstance(value, list) and not isinstance(value[0], int) else 1


def tokens_of(value: Any) -> list[int]:
    """Every token id of a checked value: of prompts, of ids or of biases."""
    if isinstance(value, dict):
        return [int(token) for token in value]
    if not isinstance(value, list) or not value or isinstance(value[0], str):
        return []
    return value if isinstance(value[0], int) else [token for prompt in value for token in prompt]


def stream_options(name: str, value: Any) -> None:
    """OpenAI's and vLLM's switches of a stream."""
    options = mapping(name, value)
    if not options.keys() <= {"include_usage", "continuous_usage_stats", "include_obfuscation"}:
        raise FieldRefused(name, "may hold include_usage, continuous_usage_stats and include_obfuscation")
    for option in options.values():
        if option is not None:
            boolean(name, option)
