"""What a merge keeps of an input: the input's own answers, read token by token by the merge.

An input answers its prompts greedily. The merge is then shown prompt and answer together, and at every token of the
answer it is asked what it would have written there itself (teacher forcing). Nobody has to say what is right: the
input's answer is the reference, so the figures say what became of a skill, and not whether the skill is good.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

SKILL_LOST: Final = 0.94
"""Below this likelihood of its own answers, an input's skill counts as lost, and the merge is warned of.

Of 172 merges, by 24 prompts an input, it finds 97 % of those that lost a fifth or more of an input's right answers, and
none of the others; by ten prompts 95 and 7 %.
"""


@dataclass(frozen=True, slots=True)
class AnswerRead:
    """One answer of an input, as the merge reads it.

    Attributes:
        tokens: of the answer, from 1.
        agreed: tokens that are the merge's own first choice there.
        alike: those of them before the first one that is not: so far the merge, asked alone, writes the same.
        own_nats: log-probability of the whole answer for the input that gave it, in nats.
        nats: the same for the merge.
    """

    tokens: int
    agreed: int
    alike: int
    own_nats: float
    nats: float

    @property
    def is_same(self) -> bool:
        """Whether the merge, asked alone, would answer with the very same tokens."""
        return self.alike == self.tokens


class InputKept(BaseModel):
    """What a merge keeps of one input, over that input's prompts."""

    model_config = ConfigDict(frozen=True)

    prompts: int = Field(description="prompts that the input answered", examples=[10])
    tokens: int = Field(description="tokens of all its answers", examples=[312])
    agreement: float = Field(
        description="share of the tokens of an answer that are the merge's own first choice, mean over answers",
        examples=[0.97],
    )
    alike: float = Field(
        description="share of an answer that the merge writes alike before it departs from it, mean over answers",
        examples=[0.91],
    )
    answers: float = Field(
        description="share of answers that the merge gives alike to the end; `require.kept` goes by it",
        examples=[0.8],
    )
    likelihood: float = Field(
        description="geometric mean over tokens of the merge's probability over the input's; `skill_lost` goes by it",
        examples=[0.93],
    )
    divergence: float = Field(
        description="mean log-probability that a token of the answer loses in the merge, nats: an estimate of KL on "
        "the input's own answers",
        examples=[0.07],
    )


def input_kept(answers: Sequence[AnswerRead]) -> InputKept:
    """The figures of one input; ``answers`` are its, one a prompt, at least one."""
    tokens = sum(one.tokens for one in answers)
    lost = math.fsum(one.own_nats - one.nats for one in answers) / tokens
    return InputKept(
        prompts=len(answers),
        tokens=tokens,
        agreement=math.fsum(one.agreed / one.tokens for one in answers) / len(answers),
        alike=math.fsum(one.alike / one.tokens for one in answers) / len(answers),
        answers=sum(one.is_same for one in answers) / len(answers),
        likelihood=math.exp(min(-lost, 0.0)),
        divergence=lost,
    )


def worst(kept: Mapping[str, InputKept]) -> tuple[str, float]:
    """The input that is kept least, and its share; the first by name where several are."""
    name = min(kept, key=lambda at: (share(kept[at]), at))
    return name, share(kept[name])


def share(kept: InputKept) -> float:
    """The figure that ``require.kept`` goes by, 0 to 1."""
    return kept.answers
