"""What the library of types finds wrong, in words of this program: its own speak of inputs, and end nowhere."""

import re
from collections.abc import Mapping
from typing import Any, Final

_SHOULD: Final = re.compile(r"(?:Input|String|List|Tuple|Dictionary|Set|Value|Data) should (?=\w)")
_OBJECT: Final = re.compile(r"a valid dictionary(?: or instance of \w+)?")
_TRIED: Final = re.compile(r", unable to parse .*")
_WHOLE: Final[Mapping[str, str]] = {
    "Field required": "is missing",
    "Extra inputs are not permitted": "is not known here",
    "Input should be a valid string": "must be a text",
}
"""By what they begin with, it has messages that read better as a whole."""


def told(found: Mapping[str, Any]) -> str:
    """The message of one entry of ``ValidationError.errors()``: what must be, without the library's subject."""
    text = str(found["msg"]).removeprefix("Value error, ").removesuffix(".")
    whole = next((words for begins, words in _WHOLE.items() if text.startswith(begins)), None)
    if whole is not None:
        return whole
    return _SHOULD.sub("must ", _OBJECT.sub("an object", _TRIED.sub("", text)), count=1)
