"""Why an engine did not start, in a sentence, out of the many words that vLLM has for it."""

import logging
import re
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import PurePath
from typing import Any, Final

_LONGEST: Final = 400
_ELSEWHERE: Final = re.compile(r"see (root cause|stack trace)|core proc\(s\)", re.IGNORECASE)
"""Errors of the core's parent have it, which only say that a child had one."""
_PYDANTIC: Final = re.compile(r"(?:Value|Assertion) error, (.*?)(?: \[type=|$)")
"""It finds the sentence inside a report of pydantic's, after a line that counts errors and one that names a class."""


class CauseTeller:
    """Tells another process of the first error that vLLM logs here; later ones follow from it.

    One alone, so that a process that nobody listens to never waits for space in the pipe.

    Args:
        to: where it is sent, as `start_reason` words it.
    """

    def __init__(self, to: Connection) -> None:
        self._to: Connection | None = to

    def listen(self) -> None:
        """Hear all that is logged from now on: no handler of vLLM's loggers outlives its own setting up of them."""
        make = logging.getLogRecordFactory()

        def heard(*args: Any, **named: Any) -> logging.LogRecord:
            record = make(*args, **named)
            self.hear(record)
            return record

        logging.setLogRecordFactory(heard)

    def hear(self, record: logging.LogRecord) -> None:
        """Send what is vLLM's log of an exception, once; not of one that names another process's."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None or self._to is None or record.levelno < logging.ERROR or _ELSEWHERE.search(str(error)):
            return
        if record.name.partition(".")[0] != "vllm":
            return
        to, self._to = self._to, None
        # Whoever should read it may be gone.
        with suppress(OSError):
            to.send_bytes(start_reason(error).encode())


def first_cause(told: Connection) -> str | None:
    """What was told first and not read yet, or None; later causes follow from it."""
    causes = []
    while told.poll():
        causes.append(told.recv_bytes().decode())
    return causes[0] if causes else None


def start_reason(error: BaseException, cause: str | None = None) -> str:
    """The cause of ``error`` without a trace and without a final stop; where it has no words, its class and its place.

    Args:
        cause: what a child process told, where the error only says that it has one.
    """
    text = " ".join(str(error).split())
    inner = _PYDANTIC.search(text)
    if inner is not None:
        text = inner[1]
    if not text:
        text = type(error).__name__ + _place(error)
    if _ELSEWHERE.search(text):
        text = cause or "a process of it ended, for the reason that its log lines above name"
    return _shortened(text).rstrip(". ")


def _place(error: BaseException) -> str:
    """Where it was raised, by the file's name and the line; nothing where that is not known."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" in {PurePath(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""


def _shortened(text: str) -> str:
    """Keep as many whole sentences as there is room for; vLLM lists all that it knows where one name is wrong."""
    if len(text) <= _LONGEST:
        return text
    whole = text[: text.rfind(". ", 0, _LONGEST) + 1]
    return whole or f"{text[:_LONGEST]} …"
