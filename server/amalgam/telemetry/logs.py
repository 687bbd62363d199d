"""Log lines: text for people, one JSON object a line for machines. No key, path or prompt is logged by us."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal


class JsonLines(logging.Formatter):
    """``{"time", "level", "logger", "message"}``, with ``exception`` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message holds."""
        line: dict[str, str] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logging(log_format: Literal["text", "json"], level: int = logging.INFO) -> None:
    """Send our logs to standard error; the roots of the program call this once."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonLines() if log_format == "json" else text)
    ours = logging.getLogger("amalgam")
    ours.handlers[:] = [handler]
    ours.setLevel(level)
    ours.propagate = False
