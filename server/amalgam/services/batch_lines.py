"""Lines of a batch: what one is, what asks it, and what is written of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from amalgam.domain.batch import Batch, answer_id
from amalgam.errors import AmalgamError


@dataclass(slots=True)
class BatchLine:
    """A line of the file.

    Attributes:
        custom_id: by which its answer is found; None where it says none that can be used.
        body: of the request; None where the line is no request.
        problem: why it is none.
        losses: how often the engine went away while it was asked.
    """

    custom_id: str | None
    body: dict[str, Any] | None = None
    problem: AmalgamError | None = None
    losses: int = 0


@dataclass(frozen=True, slots=True)
class LineAnswer:
    """What a request came to."""

    status: int
    request_id: str
    body: Mapping[str, Any]


class LineAsker(Protocol):
    """Asks lines as requests of the key that created the batch."""

    def read(self, raw: bytes, endpoint: str) -> BatchLine:
        """What a line says; blocks no longer than its parsing takes, and raises nothing."""

    async def require(self, batch: Batch, model: str | None) -> None:
        """Nothing where ``model`` is there for the key.

        Raises:
            BatchKeyEnded: the key is not valid any more.
            AmalgamError: what a request for it would be answered with.
        """

    async def ask(self, batch: Batch, line: BatchLine) -> LineAnswer:
        """The answer, or the refusal that stays one.

        Raises:
            BatchKeyEnded: the key is not valid any more.
            AmalgamError: with a time after which another try may succeed.
        """


def written_answer(batch_id: str, number: int, line: BatchLine, answer: LineAnswer) -> bytes:
    """What is written of a line that was asked, without the end of the line."""
    response = {"status_code": answer.status, "request_id": answer.request_id, "body": answer.body}
    return _written(batch_id, number, line.custom_id, response, None)


def written_problem(batch_id: str, number: int, line: BatchLine, problem: AmalgamError) -> bytes:
    """The same of a line that was not asked."""
    error = {"code": problem.code, "message": problem.message}
    return _written(batch_id, number, line.custom_id, None, error)


def problem_view(number: int | None, problem: AmalgamError) -> dict[str, Any]:
    """The same in the ``errors`` of a batch."""
    return {"code": problem.code, "message": problem.message, "param": problem.param, "line": number}


def _written(batch_id: str, number: int, custom_id: str | None, response: Any, error: Any) -> bytes:
    whole = {"id": answer_id(batch_id, number), "custom_id": custom_id, "response": response, "error": error}
    return json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode()
