"""Log lines: text for people, one JSON object a line for machines. No key, path or prompt is logged by us.

A line that is written for a request carries its id and the version that answers it.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from amalgam.telemetry.context import RequestContext, current

FIELDS: Final = "amalgam_fields"
"""This attribute of a record holds further fields of its JSON line."""

VLLM_JSON_CONFIG: Final = Path(__file__).with_name("vllm_json_logging.json")
"""vLLM's processes write lines like ours by this configuration."""

_OTHERS: Final = ("uvicorn", "asyncio")
"""These loggers belong to the libraries that speak in the serving process beside vLLM."""
_VERSION_DIGITS: Final = 9
_CONTROL: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {10: "\\n", 13: "\\r"}
_SEPARATORS: Final = {0x2028: "\\u2028", 0x2029: "\\u2029"}
_ESCAPES: Final = _CONTROL | _SEPARATORS


def _about(context: RequestContext) -> dict[str, str | int]:
    """``request_id``, and where they are known ``adapter``, ``version`` and ``trace_id``."""
    fields: dict[str, str | int] = {"request_id": context.request_id}
    if context.adapter is not None:
        name, _, number = context.adapter.rpartition("@")
        # What follows in a blend's name is no number of a version, which has at most nine digits.
        is_version = bool(name) and number.isdigit() and len(number) <= _VERSION_DIGITS
        fields["adapter"] = name if is_version else context.adapter
        if is_version:
            fields["version"] = int(number)
    if context.trace_id is not None:
        fields["trace_id"] = context.trace_id
    return fields


class JsonLines(logging.Formatter):
    """``{"time", "level", "logger", "message"}``, the request it belongs to, and ``exception`` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message holds."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        context = current()
        if context is not None:
            line |= _about(context)
        line |= getattr(record, FIELDS, {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """``time level logger: message [request id]``; a message cannot forge a second line, only a traceback has more."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (the name is the base class's)
        """The line before a traceback."""
        line = super().formatMessage(record).translate(_ESCAPES)
        context = current()
        return line if context is None else f"{line} [{context.request_id}]"


def configure_logging(log_format: Literal["text", "json"], level: int = logging.INFO) -> None:
    """Send our logs, and the warnings of the libraries around us, to standard error; a program's root calls it once."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines())
    for name in ("amalgam", *_OTHERS):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level if name == "amalgam" else logging.WARNING)
        logger.propagate = False
