"""An answer that calls what served by the alias that was asked for, where the key may not know what that means.

vLLM names the version in every answer and in every event of a stream. Only the field ``model`` is changed, and the
whole of what is an error: what was generated stays as it is.
"""

import json
import re
from collections.abc import AsyncIterator
from typing import Any, Final

from starlette.responses import Response, StreamingResponse

_ERROR_EVENTS: Final = (b'data: {"error":', b"event: error\n")


class HiddenName:
    """Puts ``shown`` in the place of ``name``."""

    def __init__(self, name: str, shown: str) -> None:
        self._name = name.encode()
        self._shown = shown.encode()
        # As a value of the field, which no text inside of a JSON string can look like: its quotes are escaped there.
        self._field = re.compile(rb'("model"\s*:\s*)' + re.escape(json.dumps(name).encode()))
        self._value = json.dumps(shown).encode()

    def in_piece(self, piece: bytes, *, is_error: bool) -> bytes:
        """A whole answer, or an event of a stream."""
        if is_error or piece.startswith(_ERROR_EVENTS):
            return piece.replace(self._name, self._shown)
        return self._field.sub(lambda found: found[1] + self._value, piece)

    async def in_stream(self, pieces: AsyncIterator[Any]) -> AsyncIterator[bytes]:
        """Every piece; the source is closed where the reader leaves."""
        try:
            async for piece in pieces:
                yield self.in_piece(piece.encode() if isinstance(piece, str) else bytes(piece), is_error=False)
        finally:
            close = getattr(pieces, "aclose", None)
            if close is not None:
                await close()

    def in_response(self, response: Response) -> Response:
        """The same answer, or a stream that goes on as it was."""
        if isinstance(response, StreamingResponse):
            response.body_iterator = self.in_stream(aiter(response.body_iterator))
            return response
        body = self.in_piece(bytes(response.body), is_error=response.status_code >= 400)
        response.body = body
        response.headers["content-length"] = str(len(body))
        return response
