"""A fault of this program that was answered is over: it is in the log once, and its connection goes on."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class AnsweredFailures:
    """Lets no error out of a request that has had its whole answer.

    Starlette raises what it has answered with a 500. uvicorn would write its trace once more, and close the connection
    without a word, under what the client sends on it next.

    Args:
        app: Starlette's, with all of its middleware.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, and raise what came before the end of an answer."""
        is_whole = False

        async def watched(message: Message) -> None:
            nonlocal is_whole
            await send(message)
            is_whole = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            if not is_whole:
                raise
