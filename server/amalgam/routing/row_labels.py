"""Which candidate a prompt is for, by how much of what the base model makes of it lies where each candidate reads.

An adapter that was trained on such prompts reads them with the rows of its `lora_A`. How much lies there without that
is different for every adapter, so that each is measured by its mean over prompts of no task.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from amalgam.routing.neutral_prompts import NEUTRAL_PROMPTS

MEASURED_BY: Final = NEUTRAL_PROMPTS[::4]
"""Each candidate is measured by these prompts of no task: a part of them, since each takes a pass of the base model."""
_KEPT_OUT: Final = 0.9
"""This share of them is for no candidate."""
_MARGIN: Final = 0.2
"""It is the least distance of the highest to the next, in means: of tasks that no candidate is for, most stay below it.
"""


def labelled(
    prompts: Sequence[str], candidates: Sequence[str], energies: Sequence[Sequence[float]]
) -> Mapping[str, Sequence[str]]:
    """The prompts by the candidate that each is for; those that are for none, or for two, are left out.

    Args:
        prompts: what users say.
        candidates: names.
        energies: of `MEASURED_BY`, then of the prompts: a value for each candidate.
    """
    found = np.array(energies, np.float64).reshape(len(MEASURED_BY) + len(prompts), len(candidates))
    neutral = found[: len(MEASURED_BY)]
    relative = found / np.maximum(neutral.mean(axis=0), 1e-12)
    threshold = np.quantile(relative[: len(MEASURED_BY)].max(axis=1), _KEPT_OUT)
    by_name: dict[str, list[str]] = {name: [] for name in candidates}
    for prompt, values in zip(prompts, relative[len(MEASURED_BY) :], strict=True):
        ranked = np.sort(values)[::-1]
        is_clear = len(ranked) == 1 or ranked[0] - ranked[1] >= _MARGIN
        if ranked[0] >= threshold and is_clear:
            by_name[candidates[int(values.argmax())]].append(prompt)
    return by_name
