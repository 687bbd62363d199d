"""What a start that fails comes to: its reason for whoever started it, and no trace for what has a sentence."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.types import Message

from amalgam.cli.failed_start import StartFailureKept
from amalgam.errors.adapters import InvalidAdapter
from amalgam.errors.findings import Finding


def started(raised: Exception | None) -> tuple[StartFailureKept, list[Message], BaseException | None]:
    """The application's start and end, what it told the server, and what it raised there."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        if raised is not None:
            raise raised
        yield

    kept, told = StartFailureKept(Starlette(lifespan=lifespan)), list[Message]()
    asked: list[Message] = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def receive() -> Message:
        return asked.pop(0)

    async def send(message: Message) -> None:
        told.append(message)

    [error] = asyncio.run(_gathered(kept, receive, send))
    return kept, told, error


async def _gathered(kept: StartFailureKept, receive: object, send: object) -> list[BaseException | None]:
    scope = {"type": "lifespan", "app": kept, "state": {}}
    return list(await asyncio.gather(kept(scope, receive, send), return_exceptions=True))  # type: ignore[arg-type]


REFUSED = InvalidAdapter([Finding(severity="error", code="wrong_rank", message="Rank 99.")])


@pytest.mark.parametrize("raised", [REFUSED, PermissionError(13, "Permission denied", "/x")], ids=repr)
def test_what_has_a_sentence_is_kept_and_told_without_its_trace(raised: Exception) -> None:
    kept, told, error = started(raised)
    assert kept.failure is raised
    assert told == [{"type": "lifespan.startup.failed", "message": ""}]
    assert error is None


def test_a_fault_of_the_program_shows_where_it_is() -> None:
    kept, [told], error = started(ZeroDivisionError("a fault"))
    assert kept.failure is None
    assert told["type"] == "lifespan.startup.failed"
    assert "Traceback" in told["message"]
    assert isinstance(error, ZeroDivisionError)


def test_a_start_that_succeeds_goes_through() -> None:
    kept, told, error = started(None)
    assert kept.failure is error is None
    assert [message["type"] for message in told] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
