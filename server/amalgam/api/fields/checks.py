"""Checks of single fields: each raises FieldRefused with the field's name and its bounds, never with its value."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import Field

from amalgam.errors.requests import FieldRefused

Check = Callable[[str, Any], None]

MAX_NESTING: Final = 32
MAX_STOPS: Final = 32
MAX_STOP: Final = 256
MAX_PROMPTS: Final = 128
MAX_INPUTS: Final = 2048
"""One request for embeddings has at most so many texts."""
MAX_PROMPT_TOKENS: Final = 1 << 20
MAX_PROMPT_CHARACTERS: Final = 1 << 22
MAX_BIASES: Final = 1024
MAX_CHOICE_NAME: Final = 64
TOKEN_DIGITS: Final = 10
STREAM_OPTIONS: Final = frozenset({"include_usage", "continuous_usage_stats", "include_obfuscation"})
PROTECTED_TEMPLATE_NAMES: Final = frozenset(
    {
        *("chat_template", "conversation", "messages", "tools", "tool_choice", "documents", "tokenize", "self"),
        *("return_dict", "return_tensors", "return_assistant_tokens_mask", "add_generation_prompt"),
        *("continue_final_message", "padding", "truncation", "max_length", "tokenizer", "tokenizer_kwargs"),
        *("model_config", "raise_exception", "strftime_now"),
    }
)
"""The renderer gives a template these itself, or takes them as options of its own."""
MAX_TEMPLATE_VALUES: Final = 16
MAX_TEMPLATE_NAME: Final = 64
MAX_TEMPLATE_TEXT: Final = 1024
MAX_TEMPLATE_NUMBER: Final = 1e15
_CONTAINERS: Final = (dict, list)


@dataclass(frozen=True, slots=True)
class Shaped:
    """A check, and the annotated type whose values pass it: what the OpenAPI document shows."""

    check: Check
    shape: Any

    def __call__(self, name: str, value: Any) -> None:
        """See `Check`."""
        self.check(name, value)


def number(low: float, high: float) -> Shaped:
    """A finite number within ``[low, high]``."""

    def check(name: str, value: Any) -> None:
        # An integer may be too large for a float, so its bounds come before any question about floats.
        kind = type(value)
        if kind is not int and (kind is not float or not math.isfinite(value)):
            raise FieldRefused(name, "must be a finite number")
        if not low <= value <= high:
            raise FieldRefused(name, f"must be between {low:g} and {high:g}")

    return Shaped(check, Annotated[float, Field(ge=low, le=high)])


def integer(low: int, high: int) -> Shaped:
    """An integer within ``[low, high]``."""

    def check(name: str, value: Any) -> None:
        if type(value) is not int:
            raise FieldRefused(name, "must be an integer")
        if not low <= value <= high:
            raise FieldRefused(name, f"must be between {low} and {high}")

    return Shaped(check, Annotated[int, Field(ge=low, le=high)])


def text(limit: int) -> Shaped:
    """A string of at most ``limit`` characters."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, str):
            raise FieldRefused(name, "must be a string")
        if len(value) > limit:
            raise FieldRefused(name, f"must have at most {limit} characters")

    return Shaped(check, Annotated[str, Field(max_length=limit)])


def boolean(name: str, value: Any) -> None:
    """True or false, and not 1 or "true"."""
    if value is not True and value is not False:
        raise FieldRefused(name, "must be true or false")


def mapping(name: str, value: Any) -> Mapping[str, Any]:
    """A JSON object, returned as it is."""
    if not isinstance(value, dict):
        raise FieldRefused(name, "must be an object")
    return value


def array(limit: int, of: Shaped | None = None) -> Shaped:
    """A list of at most ``limit`` entries, each of which passes ``of``."""
    check_one = of.check if of is not None else None

    def check(name: str, value: Any) -> None:
        if not isinstance(value, list):
            raise FieldRefused(name, "must be a list")
        if len(value) > limit:
            raise FieldRefused(name, f"must have at most {limit} entries")
        if check_one is not None:
            for entry in value:
                check_one(name, entry)

    entries: Any = Any if of is None else of.shape
    return Shaped(check, Annotated[list[entries], Field(max_length=limit)])


def shallow(name: str, value: Any) -> None:
    """Any JSON that is not nested so deeply that walking it is an attack."""
    level = [value] if isinstance(value, _CONTAINERS) else []
    for _ in range(MAX_NESTING - 1):
        if not level:
            return
        level = [c for v in level for c in (v.values() if isinstance(v, dict) else v) if isinstance(c, _CONTAINERS)]
    if any(level):
        raise FieldRefused(name, f"must not be nested deeper than {MAX_NESTING}")


def shallow_object(name: str, value: Any) -> None:
    """The same, of an object."""
    shallow(name, value)
    mapping(name, value)


def choice(name: str, value: Any) -> None:
    """The name of what is wanted, or an object that says more; which of them there are is the engine's to say."""
    if isinstance(value, str):
        _CHOICE_NAME(name, value)
    elif not isinstance(value, dict):
        raise FieldRefused(name, "must be a string or an object")
    else:
        shallow(name, value)
        for holder in (value, value.get("function"), value.get("custom")):
            wrong = [key for key in ("type", "name") if isinstance(holder, dict) and not _may_be_text(holder.get(key))]
            if wrong:
                raise FieldRefused(name, f"{wrong[0]} must be a text")


def _may_be_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


_CHOICE_NAME: Final = text(MAX_CHOICE_NAME).check
_STOP_LIST: Final = array(MAX_STOPS, text(MAX_STOP)).check
_BIAS: Final = number(-100, 100).check
_TEMPLATE_TEXT: Final = text(MAX_TEMPLATE_TEXT).check
_TEMPLATE_NUMBER: Final = number(-MAX_TEMPLATE_NUMBER, MAX_TEMPLATE_NUMBER).check
_TOKEN: Final = integer(0, (1 << 31) - 1)


def stops(name: str, value: Any) -> None:
    """One stop string or a few; an empty one is as none."""
    stop_list(name, value if isinstance(value, list) else [value])


def stop_list(name: str, value: Any) -> None:
    """A few stop strings."""
    _STOP_LIST(name, value)


def token_ids(limit: int) -> Shaped:
    """A list of token ids; whether the vocabulary has them is asked by `check_fields`."""
    return array(limit, _TOKEN)


def logit_bias(name: str, value: Any) -> None:
    """Token ids, as strings, to numbers within [-100, 100]."""
    biases = mapping(name, value)
    if len(biases) > MAX_BIASES:
        raise FieldRefused(name, f"must have at most {MAX_BIASES} entries")
    for token, bias in biases.items():
        if not token.isascii() or not token.isdigit() or len(token) > TOKEN_DIGITS:
            raise FieldRefused(name, "keys must be token ids")
        _BIAS(name, bias)


def prompts(limit: int) -> Shaped:
    """A text, at most ``limit`` texts, the token ids of a prompt, or so many lists of them; none of them empty."""
    one_text, ids = text(MAX_PROMPT_CHARACTERS), token_ids(MAX_PROMPT_TOKENS)
    entries, few = array(MAX_PROMPT_TOKENS).check, array(limit).check

    def check(name: str, value: Any) -> None:
        if isinstance(value, str):
            one_text.check(name, value)
            return
        entries(name, value)
        if not value:
            raise FieldRefused(name, "must not be empty")
        if isinstance(value[0], int):
            ids.check(name, value)
            return
        few(name, value)
        one = one_text if isinstance(value[0], str) else ids
        for prompt in value:
            one.check(name, prompt)
            if not prompt:
                raise FieldRefused(name, "must not hold an empty prompt")

    filled = filled_list(_TOKEN.shape, MAX_PROMPT_TOKENS)
    texts = filled_list(Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS)], limit)
    return Shaped(check, one_text.shape | filled | texts | filled_list(filled, limit))


def filled_list(entry: Any, limit: int) -> Any:
    """The type of a list of 1 to ``limit`` entries of a type."""
    return Annotated[list[entry], Field(min_length=1, max_length=limit)]


def tokens_of(value: Any) -> list[int]:
    """Every token id of a checked value: of prompts, of ids or of biases."""
    if isinstance(value, dict):
        return [int(token) for token in value]
    if not isinstance(value, list) or not value or isinstance(value[0], str):
        return []
    return value if isinstance(value[0], int) else [token for prompt in value for token in prompt]


def stream_options(name: str, value: Any) -> None:
    """OpenAI's and vLLM's switches of a stream; others among them have no effect."""
    for key, option in mapping(name, value).items():
        if option is not None and key in STREAM_OPTIONS:
            boolean(name, option)


def template_values(name: str, value: Any) -> None:
    """Values for the chat template: few, single and short; the template itself and what it renders are not theirs."""
    values = mapping(name, value)
    if len(values) > MAX_TEMPLATE_VALUES:
        raise FieldRefused(name, f"must have at most {MAX_TEMPLATE_VALUES} entries")
    for key, one in values.items():
        if key in PROTECTED_TEMPLATE_NAMES or not key.isidentifier() or len(key) > MAX_TEMPLATE_NAME:
            raise FieldRefused(name, "names must be identifiers, and none of the names that the server fills in")
        if one is not None and not isinstance(one, bool):
            (_TEMPLATE_TEXT if isinstance(one, str) else _TEMPLATE_NUMBER)(name, one)
