"""No message of the library of types reaches anybody in its own words."""

from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from amalgam.errors.type_words import told


class Needed(BaseModel):
    name: str


class Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")

    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    names: Annotated[list[str], Field(min_length=1, max_length=2)] = ["a"]
    text: Annotated[str, Field(min_length=1, pattern="^a")] = "a"
    kind: Any = None
    inner: Needed | None = None


@pytest.mark.parametrize(("fields", "words"), [
    ({"share": 2}, "must be less than or equal to 1"), ({"share": "x"}, "must be a valid number"),
    ({"names": []}, "must have at least 1 item after validation, not 0"), ({"text": ""}, "must have at least 1"),
    ({"text": 5}, "must be a text"), ({"inner": []}, "must be an object"),
    ({"text": "b"}, "must match pattern"), ({"other": 1}, "is not known here"),
])  # fmt: skip
def test_what_must_be_is_said_without_the_librarys_subject(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Asked.model_validate(fields)
    said = told(caught.value.errors()[0])
    assert said.startswith(words), said
    assert "nput" not in said
    assert "parse" not in said
    assert "instance" not in said


def test_what_is_missing_and_what_we_say_ourselves() -> None:
    with pytest.raises(ValidationError) as caught:
        Needed.model_validate({})
    assert told(caught.value.errors()[0]) == "is missing"
    assert told({"msg": "Value error, weights must not be zero."}) == "weights must not be zero"
