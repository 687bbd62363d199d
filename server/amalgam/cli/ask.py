"""`amalgam ask`: one question to a running server, the answer as it comes."""

import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Final

import httpx
import typer

from amalgam.cli.client import DEFAULT_URL, Url, answer, client
from amalgam.cli.consoles import on_stderr
from amalgam.cli.one_line import ended, ended_with
from amalgam.errors.terminal import NotAmalgam

_TIMEOUT_S: Final = 600.0
_DATA: Final = "data: "
_DONE: Final = "[DONE]"

ClientKey = Annotated[str | None, typer.Option(help="client key", envvar="AMALGAM_API_KEY", show_default=False)]


def ask(
    model: Annotated[str, typer.Argument(help="name, name@version, alias or expression such as 'sql + 0.5*json'")],
    prompt: Annotated[str, typer.Argument(help="the question; a dash reads it from standard input")],
    max_tokens: Annotated[int | None, typer.Option(min=1, help="longest answer, tokens")] = None,
    system: Annotated[str | None, typer.Option(help="what the model is told before the question")] = None,
    url: Url = DEFAULT_URL,
    key: ClientKey = None,
) -> None:
    """Ask a model once; the answer is written as it comes."""
    question = sys.stdin.read() if prompt == "-" else prompt
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": question})
    body: dict[str, Any] = {"model": model, "messages": messages, "stream": True}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    reason = None
    with client(url, key, timeout_s=_TIMEOUT_S) as session:
        for choice in _choices(session, body):
            reason = choice.get("finish_reason") or reason
            # What a model writes must not steer the terminal.
            text = "".join(c for c in choice["delta"].get("content") or "" if c.isprintable() or c in "\n\t")
            print(text, end="", flush=True)
    print()
    if reason == "length":
        on_stderr().print("The answer was cut. Raise --max-tokens for the rest.", style="yellow", soft_wrap=True)


def _choices(session: httpx.Client, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pieces of the answer; ends the program with the server's words where it refuses or fails."""
    encoded = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    with session.stream("POST", "/v1/chat/completions", content=encoded, headers=headers) as response:
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            response.read()
            answer(response)
            raise KeyError("event")
        for line in response.iter_lines():
            if not line.startswith(_DATA) or line == _DATA + _DONE:
                continue
            try:
                event = json.loads(line.removeprefix(_DATA))
            except ValueError:
                raise ended_with(NotAmalgam(str(response.url))) from None
            if "error" in event:
                print()
                raise ended(str(event["error"].get("code")), str(event["error"].get("message")), 1)
            yield from event["choices"]
