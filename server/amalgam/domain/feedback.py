"""What clients say about answers, and which answer each of them got."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

NAME_PATTERN: Final = r"^[a-z][a-z0-9_]{0,31}$"
OutcomeName = Annotated[str, Field(pattern=NAME_PATTERN)]
MAX_ID_LENGTH: Final = 128
"""The id of an answer has at most so many characters."""
MAX_NAMES: Final = 16
"""One answer may be judged under so many different names."""
MAX_SUMS: Final = 1000
"""So many sums are shown of one alias, those of the most feedback: clients make the names."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, as long as it may be judged.

    Attributes:
        id: of the request.
        completion_id: of the answer's body; None where it had none.
        tenant: whose key asked.
        key_id: which key.
        alias: that was asked for; empty where none was.
        target: of the alias, as the alias names it; empty without one.
        version: what answered.
        experiment: that the alias carried; None without one.
        unit: what always meets the same target, as a digest; None where each request draws anew.
    """

    id: str
    completion_id: str | None
    tenant: str
    key_id: str
    alias: str
    target: str
    version: str
    experiment: str | None
    unit: str | None


class Feedback(BaseModel):
    """What a client says about an answer."""

    model_config = ConfigDict(frozen=True)

    answer: str
    """It is the id of its request."""
    name: OutcomeName
    value: float = Field(ge=0, le=1)
    alias: str
    target: str
    version: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class OutcomeSum:
    """Feedback of one name about the answers of one target of an alias.

    Attributes:
        target: as the alias names it; empty where no alias was asked for.
        version: what answered.
        name: of the feedback.
        count: how many.
        total: their sum.
    """

    target: str
    version: str
    name: str
    count: int
    total: float
