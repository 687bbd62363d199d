"""Why an engine did not start, in a sentence, out of the many words that vLLM has for it."""

import logging
import re
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import PurePath
from typing import Any, Final

from amalgam.errors import AmalgamError

_LONGEST: Final = 400
_ELSEWHERE: Final = re.compile(r"see (root cause|stack trace)|core proc\(s\)", re.IGNORECASE)
"""Errors of the core's parent have it, which only say that a child had one."""
_REPORT: Final = re.compile(r"\d+ validation errors? for \S+\n(.*)", re.DOTALL)
"""It finds the errors in a report of pydantic's, behind the line that counts them and what may stand before it."""
_BEFORE: Final = re.compile(r"^(?:Error: |Class validation error for validator '\w+': (?:\w+: )?)")
"""It finds words that only say that an error is one, of vLLM and of transformers' configs."""
_BETWEEN: Final = re.compile(r"\n    For further information visit \S+\n?")
_FAULT: Final = re.compile(r"(?:(\S.*)\n)?  ((?s:.*?))(?: \[type=(?s:.*))?")
"""It is one of the errors: the field, if one is named, and the sentence."""


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
    # The text of a missing key is how Python would write it.
    is_key = isinstance(error, KeyError) and len(error.args) == 1
    text = told_by(str(error.args[0] if is_key else error))
    if not text:
        text = type(error).__name__ + _place(error)
    if _ELSEWHERE.search(text):
        text = cause or "a process of it ended, for the reason that its log lines above name"
    return _shortened(text).rstrip(". ")


def is_of_configuration(error: BaseException) -> bool:
    """Whether it is about what the engine was started with: its sentence helps, and where it was found does not."""
    from huggingface_hub.errors import StrictDataclassError
    from vllm.exceptions import VLLMClientError

    told = (AmalgamError, OSError, ValueError, StrictDataclassError, VLLMClientError)
    return isinstance(error, told)


def told_by(text: str) -> str:
    """The same on one line, without a final stop; of a report of pydantic's, each field with what is wrong with it."""
    report = _REPORT.search(text)
    if report is not None:
        text = text[: report.start()] + "; ".join(_faults(report[1]))
    return _BEFORE.sub("", " ".join(text.split())).rstrip(". ")


def _faults(report: str) -> list[str]:
    """One for each field: where a type is one of several, each of them has an entry of its own."""
    found: dict[str, str] = {}
    for fault in filter(None, map(_FAULT.fullmatch, _BETWEEN.split(report))):
        text = re.sub(r"^(Value error|Assertion error|Assertion failed), ", "", fault[2])
        name = (fault[1] or "").partition(".")[0]
        found.setdefault(name, (f"{name}: " if name else "") + text.replace("Input should ", "must ").rstrip(". \n"))
    return list(found.values())


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
