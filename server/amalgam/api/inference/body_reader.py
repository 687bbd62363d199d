"""Bodies of inference requests: bounded, decoded, parsed and checked, the larger ones off the event loop."""

import asyncio
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final, Self

from starlette.requests import Request

from amalgam.api.fields.by_endpoint import CheckedBody, check_fields
from amalgam.api.fields.loose_values import plain_values, require_dialect
from amalgam.api.fields.media import TEXT_ONLY, MediaBounds
from amalgam.api.fields.request_budget import body_limit, bounded_answer
from amalgam.api.fields.strict_json import INLINE_BYTES, parse_object, require_json
from amalgam.api.transport.body_encodings import content_encodings, decoded
from amalgam.domain.adapter import BaseModelSpec
from amalgam.engine.protocol import Endpoint
from amalgam.errors.http import BodyTooLarge
from amalgam.errors.requests import FieldRefused
from amalgam.settings import Settings

IGNORED: Final = "amalgam.ignored_fields"
"""This key of a request's scope holds the names of the fields that were taken without effect."""
TEXT_BYTES: Final = "amalgam.text_bytes"
"""This key of a request's scope holds the size of its body, decoded and without its media."""
READ_LIMIT_S: Final = 10.0
_THREADS: Final = 2


class BodyReader:
    """Reads and checks bodies for one served model.

    Args:
        general_bytes: no body is larger.
        vocabulary_size: token ids are below it; None where it is not known.
        context_tokens: longest prompt plus answer; None where it is not known.
        refuse_unknown: whether a field that no table has is refused.
        media: what of pictures and sounds the model reads; bodies with them may be as large as any.
    """

    def __init__(
        self,
        general_bytes: int,
        vocabulary_size: int | None,
        context_tokens: int | None,
        *,
        refuse_unknown: bool = False,
        media: MediaBounds = TEXT_ONLY,
    ) -> None:
        self._media = media
        self._refuse_unknown = refuse_unknown
        self._general_bytes = general_bytes
        self._vocabulary_size = vocabulary_size
        self._context_tokens = context_tokens
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="body")

    @classmethod
    def of(cls, settings: Settings, args: Namespace, base: BaseModelSpec) -> Self:
        """What the engine is started with says how long a prompt may be; where it does not, the model's config."""
        given = getattr(args, "max_model_len", None)
        context_tokens = given if isinstance(given, int) and given > 0 else base.context_tokens
        media = MediaBounds(
            base.reads, settings.http.media_items, settings.http.media_pixels, frozenset(settings.http.media_hosts)
        )
        return cls(
            settings.http.max_body_bytes,
            base.vocabulary_size,
            context_tokens,
            refuse_unknown=settings.http.unknown_fields == "refuse",
            media=media,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Take no more bodies."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def context_tokens(self) -> int | None:
        """Longest prompt plus answer; None where it is not known."""
        return self._context_tokens

    @property
    def reads_media(self) -> bool:
        """Whether a prompt may hold what is not text."""
        return bool(self._media.reads)

    def bounded(self, endpoint: Endpoint, body: dict[str, Any]) -> dict[str, Any]:
        """See `bounded_answer`."""
        return bounded_answer(endpoint, body, self._context_tokens)

    async def read(self, endpoint: Endpoint, request: Request) -> dict[str, Any]:
        """What the engine gets of the body of ``request``; the names of the rest are left in its scope as `IGNORED`.

        Raises:
            UnsupportedMediaType: not sent as JSON.
            UnsupportedEncoding: compressed in a way that is not read here.
            BodyTooLarge: more than the model's context can hold.
            MediaUnsupported, MediaTooLarge: see `check_media`.
            FieldRefused: not JSON as `parse_json` reads it, not an object, or a field that is refused.
        """
        require_json(request)
        limit = body_limit(endpoint, None if self._media.reads else self._context_tokens, self._general_bytes)
        if int(request.headers.get("content-length", "0")) > limit:
            raise BodyTooLarge(limit)
        raw = await request.body()
        if len(raw) > limit:
            raise BodyTooLarge(limit)
        encodings = content_encodings(request.headers.getlist("content-encoding"))
        if len(raw) <= INLINE_BYTES and not encodings:
            checked = self._checked(endpoint, raw, encodings, limit)
        else:
            loop = asyncio.get_running_loop()
            work = loop.run_in_executor(self._threads, self._checked, endpoint, raw, encodings, limit)
            try:
                checked = await asyncio.wait_for(work, READ_LIMIT_S)
            except TimeoutError:
                raise FieldRefused("body", f"takes longer than {READ_LIMIT_S:g} seconds to read; send less") from None
        request.scope[IGNORED] = checked.ignored
        request.scope[TEXT_BYTES] = checked.text_bytes
        return checked.body

    def _checked(self, endpoint: Endpoint, raw: bytes, encodings: list[str], limit: int) -> CheckedBody:
        raw = decoded(raw, encodings, limit)
        body = plain_values(endpoint, parse_object(raw))
        require_dialect(endpoint, body)
        checked = check_fields(
            endpoint,
            body,
            self._vocabulary_size,
            self._context_tokens,
            refuse_unknown=self._refuse_unknown,
            media=self._media,
        )
        most = body_limit(endpoint, self._context_tokens, self._general_bytes)
        if checked.media_bytes and len(raw) - checked.media_bytes > most:
            # What is not media is text, and as long as text may be.
            raise BodyTooLarge(most)
        return replace(checked, text_bytes=len(raw) - checked.media_bytes)
