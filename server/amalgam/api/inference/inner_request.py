"""Requests that the server makes to its own engine: they stand in for a client's where vLLM's handlers want one."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message

from amalgam.engine.inner_scope import inner_scope
from amalgam.engine.protocol import CallProfile, Endpoint, Engine
from amalgam.errors.evaluations import AnswerUnreadable
from amalgam.services.cache_salts import CacheSalts
from amalgam.services.evaluation_calls import CLIENT, Ask
from amalgam.services.profiles import ProfileService


def inner_ask(
    app: ASGIApp, engine: Engine, salts: CacheSalts, profiles: Callable[[], ProfileService] | None = None
) -> Ask:
    """What asks ``engine`` as a client of ``app`` would, without a socket; a cancelled ask aborts the engine's work.

    Evaluations share what they have in the prefix cache with each other, and with no key.
    """

    async def ask(endpoint: Endpoint, body: dict[str, Any]) -> Mapping[str, Any]:
        gone = asyncio.Event()
        profile: CallProfile | None = None
        if profiles is not None:
            body, profile = await profiles().applied(endpoint, body, CLIENT)
        extra = () if profile is None else (profile,)
        asked = salts.salted(endpoint, body, CLIENT)
        call = asyncio.create_task(engine.call(endpoint, asked, _request(app, gone), *extra))
        try:
            response = await asyncio.shield(call)
        except asyncio.CancelledError:
            # vLLM's handlers work in tasks of their own, which only a client that leaves ends.
            gone.set()
            call.add_done_callback(_forget)
            raise
        answer = None if response is None else json.loads(response.body)
        if not isinstance(answer, Mapping):
            raise AnswerUnreadable("JSON object")
        return answer

    return ask


def _request(app: ASGIApp, gone: asyncio.Event) -> Request:
    """A request whose body was read already, of a client who stays until ``gone``."""

    async def receive() -> Message:
        await gone.wait()
        return {"type": "http.disconnect"}

    return Request(inner_scope(app), receive)


def _forget(call: "asyncio.Task[Any]") -> None:
    """Whatever a call that nobody waits for came to has been asked about, so that nothing complains."""
    with contextlib.suppress(asyncio.CancelledError):
        call.exception()
