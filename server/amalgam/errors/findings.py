"""What a check of an adapter found: one frozen row each, errors and warnings alike."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Finding(BaseModel):
    """One thing that is wrong, or worth saying, about an adapter folder."""

    model_config = ConfigDict(frozen=True)

    code: str = Field(description="stable name, one of those in docs/errors.md")
    severity: Literal["error", "warning"] = "error"
    message: str = Field(description="what is wrong, with the values, and the next step")
    module: str | None = Field(default=None, description="canonical module name, where one module is at fault")
