"""Pictures and sounds that are found out only when they are unpacked or prepared for the model: whose fault, and why.

vLLM names its own class and every argument of it, and leaves the cause to its log.
"""

import re
from typing import Final

from amalgam.errors.requests import MediaUnsupported

_NOT_UNPACKED: Final = "Failed to load image: "
_NOT_PREPARED: Final = re.compile(r"Failed to apply \w+ on data=")
_TOO_SHORT: Final = "Audio is too short"
_OBJECT: Final = re.compile(r"\s*<[^>]*>")
"""It finds how Python shows an object, which says nothing."""


def media_failure(field: str, message: str, cause: BaseException | None = None) -> MediaUnsupported | None:
    """What is to be told in the place of ``message``; None where it is about something else.

    Args:
        field: of the request, which holds pictures and sounds.
        message: vLLM's.
        cause: what it was raised from.
    """
    if message.startswith(_NOT_UNPACKED):
        why = _OBJECT.sub("", message.removeprefix(_NOT_UNPACKED))
        return MediaUnsupported(field, f"a picture cannot be unpacked ({why})", "Send a whole file")
    if message.startswith(_TOO_SHORT):
        return MediaUnsupported(field, "a sound is too short for the model", "Send a longer one")
    if _NOT_PREPARED.match(message):
        why = _OBJECT.sub("", " ".join(str(cause or "").split())).rstrip(". ")
        said = f" ({why})" if why else ""
        return MediaUnsupported(field, f"the model cannot take a picture or sound as it is{said}", "Send another one")
    return None
