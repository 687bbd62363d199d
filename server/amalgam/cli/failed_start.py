"""A start that fails is one sentence. uvicorn would print the trace of what the application's lifespan raised."""

from pydantic import ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from amalgam.errors import AmalgamError

_TOLD = (AmalgamError, OSError, ValidationError)
"""The command line has a sentence for these; anything else is a fault of this program, and shows where it is."""


class StartFailureKept:
    """An application whose failure to start is kept in ``failure``, for whoever started it to tell.

    Args:
        app: what is started and answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.failure: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on but the trace of a start that failed."""
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        failed: Message | None = None

        async def held(message: Message) -> None:
            nonlocal failed
            if message["type"] == "lifespan.startup.failed":
                failed = message
            else:
                await send(message)

        try:
            await self._app(scope, receive, held)
        except Exception as error:
            if failed is None:
                raise
            if not isinstance(error, _TOLD):
                await send(failed)
                raise
            self.failure = error
            await send({"type": failed["type"], "message": ""})
