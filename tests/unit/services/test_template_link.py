"""The real template process behind its line: whatever a template does costs its own request only, and in time."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from amalgam.errors.profiles import ChatTemplateFailed, ChatTemplateInvalid, ChatTemplateRefused
from amalgam.services.background_loops import BackgroundLoops
from amalgam.services.template_link import TemplateLink
from amalgam.telemetry.metrics import Metrics

COMMAND = (sys.executable, "-m", "amalgam.workers.template_process")
PLAIN = "{% for message in messages %}<{{ message.content }}>{% endfor %}"
HI = [{"role": "user", "content": "hi"}]
RUNAWAYS = {
    "a loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a power": "{% set n = messages|length %}{{ (n + 9) ** ((n + 9) ** (n + 9)) }}",
    "a power of constants": "{{ 9 ** (9 ** 9) }}",
    "memory": "{{ 'x' * 10000000000 }}",
    "much text": "{% for a in range(99999) %}{{ 'x' * 999 }}{% endfor %}",
    "depth": "{% macro again(n) %}{{ again(n + 1) }}{% endmacro %}{{ again(1) }}",
    "a surrogate": r"{{ '\ud800' }}",
}


@asynccontextmanager
async def link(timeout_s: float = 1.0) -> AsyncIterator[TemplateLink]:
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    metrics = Metrics()
    made = TemplateLink(COMMAND, environment, timeout_s, BackgroundLoops(metrics), metrics)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def render(made: TemplateLink, template: str, messages: Any = HI, **values: Any) -> str:
    return await made.render("sql@1", template, messages, None, values)


async def test_no_process_runs_before_the_first_template() -> None:
    async with link() as made:
        await asyncio.sleep(0.05)
        assert made.pid is None
        assert await render(made, PLAIN + "{{ more }}", more="ü") == "<hi>ü"
        assert made.pid is not None


@pytest.mark.parametrize("template", RUNAWAYS.values(), ids=RUNAWAYS.keys())
async def test_a_template_that_runs_away_is_ended_and_the_loop_and_the_others_go_on(template: str) -> None:
    async with link() as made:
        await render(made, PLAIN)
        longest, stop = 0.0, False

        async def watch() -> None:
            nonlocal longest
            while not stop:
                began = time.monotonic()
                await asyncio.sleep(0.01)
                longest = max(longest, time.monotonic() - began)

        watcher = asyncio.create_task(watch())
        with pytest.raises(ChatTemplateFailed) as failed:
            await render(made, template)
        with pytest.raises(ChatTemplateInvalid) as invalid:
            await made.content_format(template)
        stop = True
        await watcher
        assert "sql@1" in failed.value.message
        assert len(invalid.value.message) < 1000
        # Of a loop that was held up by the template it would be as long as the template takes, which is hours.
        assert longest < 1.0
        assert await render(made, PLAIN) == "<hi>"


async def test_what_a_template_says_of_a_conversation_is_the_clients_fault_and_anything_else_is_not() -> None:
    async with link() as made:
        with pytest.raises(ChatTemplateRefused) as refused:
            await render(made, "{{ raise_exception('Roles must alternate.') }}")
        assert "Roles must alternate." in refused.value.message
        with pytest.raises(ChatTemplateFailed):
            await render(made, "{{ nothing.of.it }}")
        assert await made.content_format(PLAIN) == "string"


async def test_a_client_that_leaves_takes_its_template_along() -> None:
    async with link(timeout_s=30) as made:
        await render(made, PLAIN)
        work = asyncio.create_task(render(made, RUNAWAYS["a loop"]))
        await asyncio.sleep(0.1)
        work.cancel()
        began = time.monotonic()
        assert await render(made, PLAIN) == "<hi>"
        assert time.monotonic() - began < 15


async def test_many_at_once_each_get_their_own() -> None:
    async with link(timeout_s=10) as made:
        asked = [[{"role": "user", "content": str(number)}] for number in range(20)]
        assert await asyncio.gather(*(render(made, PLAIN, one) for one in asked)) == [f"<{n}>" for n in range(20)]


async def test_half_of_a_surrogate_pair_in_what_a_client_says_breaks_no_line() -> None:
    half = [{"role": "user", "content": "\ud800"}]
    async with link() as made:
        assert await render(made, "{{ messages[0].content | length }}", half, name="\udfff") == "1"
        # A prompt with one in it cannot be encoded, which is the template's fault and ends nothing.
        with pytest.raises(ChatTemplateFailed):
            await render(made, PLAIN, half)
        pid = made.pid
        with pytest.raises(ChatTemplateFailed):
            await render(made, "\ud800")
        assert await render(made, PLAIN) == "<hi>"
        assert made.pid == pid


def test_the_template_process_imports_little() -> None:
    """It is started while a client waits, within a bound on memory."""
    program = "import sys, amalgam.workers.template_process; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert (
        loaded & {"pydantic", "pydantic_core", "torch", "numpy", "fastapi", "starlette", "sqlalchemy", "httpx"} == set()
    )
