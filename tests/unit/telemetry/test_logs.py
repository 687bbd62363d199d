"""Log lines: one line, parseable, whatever the message holds, and about the right request."""

import asyncio
import json
import logging
import subprocess
import sys
from typing import Any

import pytest

from amalgam.telemetry.context import RequestContext, current, enter, note_adapter
from amalgam.telemetry.logs import FIELDS, VLLM_JSON_CONFIG, JsonLines, TextLines

HOSTILE = [
    'a\nb\r\n{"level": "error"}',
    'quote " backslash \\ percent %s %d',
    "\x00\x1b[31mred\x7f\x85",
    "line\u2028separator\u2029s",
    "lone surrogate \ud800",
    "x" * 100_000,
    "",
]


def record(message: str, *args: Any, **more: Any) -> logging.LogRecord:
    made = logging.LogRecord("amalgam.test", logging.WARNING, __file__, 1, message, args, more.pop("exc_info", None))
    for name, value in more.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize("message", HOSTILE)
def test_a_json_line_is_one_line_that_parses_back(message: str) -> None:
    line = JsonLines().format(record("%s", message))
    assert len(line.splitlines()) == 1
    assert line.isascii()
    parsed = json.loads(line)
    assert parsed["message"] == message
    assert (parsed["level"], parsed["logger"]) == ("warning", "amalgam.test")


@pytest.mark.parametrize("message", HOSTILE)
def test_a_text_line_cannot_be_made_to_look_like_two(message: str) -> None:
    line = TextLines().format(record("%s", message))
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line


def test_a_traceback_stays_readable_in_text_and_one_line_in_json() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        failed = record("it failed", exc_info=(type(error), error, error.__traceback__))
    assert "Traceback" in json.loads(JsonLines().format(failed))["exception"]
    assert len(TextLines().format(failed).splitlines()) > 3


async def test_lines_of_a_request_carry_its_id_and_version_and_no_others_do() -> None:
    async def answer(name: str, adapter: str | None) -> dict[str, Any]:
        enter(RequestContext(name, trace_id="0" * 31 + "1" if adapter else None))
        await asyncio.sleep(0)
        if adapter is not None:
            # From a task that the request started, as a load is.
            await asyncio.create_task(_note(adapter))
        await asyncio.sleep(0)
        parsed: dict[str, Any] = json.loads(JsonLines().format(record("hello")))
        return parsed

    sql, base, none = await asyncio.gather(
        asyncio.create_task(answer("one", "sql@3")),
        asyncio.create_task(answer("two", "smollm2")),
        asyncio.create_task(answer("three", None)),
    )
    assert (sql["request_id"], sql["adapter"], sql["version"], sql["trace_id"][-1]) == ("one", "sql", 3, "1")
    assert (base["request_id"], base["adapter"]) == ("two", "smollm2")
    assert "version" not in base
    assert none["request_id"] == "three"
    assert {"adapter", "version", "trace_id"}.isdisjoint(none)
    assert current() is None
    assert "request_id" not in json.loads(JsonLines().format(record("hello")))


async def _note(adapter: str) -> None:
    note_adapter(adapter)


def test_fields_of_a_record_stand_beside_its_message() -> None:
    parsed = json.loads(JsonLines().format(record("GET", **{FIELDS: {"status": 200, "ms": 1.5}})))
    assert (parsed["status"], parsed["ms"], parsed["message"]) == (200, 1.5, "GET")


def test_what_the_libraries_say_is_json_too() -> None:
    program = f"""
import json, logging, logging.config
from pathlib import Path
from amalgam.telemetry.logs import configure_logging
logging.config.dictConfig(json.loads(Path({str(VLLM_JSON_CONFIG)!r}).read_text()))
configure_logging("json")
for name in ("vllm.engine", "uvicorn.error", "asyncio", "amalgam.x"):
    logging.getLogger(name).info("hidden")
    logging.getLogger(name).error("two\\nlines")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["logger"], line["message"]) for line in lines] == [
        ("vllm.engine", "two\nlines"),
        ("uvicorn.error", "two\nlines"),
        ("asyncio", "two\nlines"),
        ("amalgam.x", "hidden"),
        ("amalgam.x", "two\nlines"),
    ]
