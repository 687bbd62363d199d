"""What a fit will take, said before it is done."""

from collections.abc import Mapping
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from amalgam.domain.fit import FitMethod, FitRecord

_GIB: Final = 1 << 30


class ReadingNeeds(BaseModel):
    """What it takes to read prompts with the base model, where it would be done."""

    model_config = ConfigDict(frozen=True)

    memory_bytes: int = Field(
        description="estimate of the bytes that the base model takes to read with, beside all that runs already",
        examples=[323000000],
    )
    free_bytes: int = Field(description="bytes that may be taken now without swapping", examples=[8589934592])
    device: str = Field(description="device that computes", examples=["cpu"])
    dtype: str = Field(description="type that is computed in", examples=["bfloat16"])
    threads: int = Field(description="threads of a processor that compute", examples=[2])

    @property
    def too_much(self) -> str | None:
        """The sentence that says that it does not fit; None where it does."""
        if self.memory_bytes <= self.free_bytes:
            return None
        return (
            f"the base model takes about {self.memory_bytes / _GIB:.1f} GiB here, and {self.free_bytes / _GIB:.1f} GiB "
            "are free"
        )


class FitForecast(BaseModel):
    """What a fit will take."""

    model_config = ConfigDict(frozen=True)

    method: FitMethod = Field(
        description="method as it was asked for, or as the server chooses it", examples=["iteris"]
    )
    by: Literal["kept", "items"] = Field(description="answers of the inputs, or wanted ones", examples=["kept"])
    prompts: Mapping[str, int] = Field(
        description="how many prompts of each input are read, by the worker or by each candidate",
        examples=[{"sql@1": 10}],
    )
    answers: int = Field(
        description="answers that inputs give first, of `max_tokens` at most; 0 where those that are wanted are read",
        examples=[20],
    )
    max_tokens: int = Field(description="longest answer, tokens", examples=[64])
    candidates: int | None = Field(description="most candidates that `weights` tries", examples=[None])
    budget_s: float = Field(description="longest reading or search, seconds", examples=[300.0])
    reading: ReadingNeeds | None = Field(
        default=None,
        description="what the worker needs for `iteris`; null without diagnostics, and where the engine tries weights",
    )

    @classmethod
    def of(cls, record: FitRecord, prompts: Mapping[str, int], reading: ReadingNeeds | None) -> "FitForecast":
        """The forecast of what ``record`` asks for, by so many prompts of each input."""
        answers = 0 if record.method == "iteris" and record.by == "items" else sum(prompts.values())
        return cls(
            method=record.method,
            by=record.by,
            prompts=prompts,
            answers=answers,
            max_tokens=record.max_tokens,
            candidates=record.candidates,
            budget_s=record.budget_s,
            reading=reading,
        )

    def warnings(self) -> tuple[str, ...]:
        """A sentence where the job would fail now."""
        if self.reading is None or self.reading.too_much is None:
            return ()
        return (
            f"fit_unread: {self.reading.too_much}; free some, or let weights be searched on the engine, with "
            '"method": "weights"',
        )
