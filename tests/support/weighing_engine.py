"""A fake engine whose answers and log-probabilities depend on the weights of the blend that is asked."""

import asyncio
import math
from collections.abc import Mapping
from random import Random
from typing import Any

from starlette.responses import JSONResponse

from amalgam.domain.blend import blend_name
from tests.api.fake_engine import FakeEngine
from tests.api.test_blends import Instant

ANSWER = (7, 8, 9)
OWN = -0.1
"""Log-probability of each token of an answer, for who gave it."""


class WeighingEngine(FakeEngine):
    """A prompt ``task level`` is answered as its own adapter would where that one's weight outdoes the others'.

    The margin is the own weight, less a quarter of the others' and less a fifth of the sum of all squares: there is a
    best set of weights, and it is not the largest one.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.blends: Instant | None = None
        self.asked: list[str] = []
        """Who was asked, in order."""
        self.slow: Random | None = None
        """Says which calls take longer than others; None: none does."""

    async def call(self, endpoint: Any, body: dict[str, Any], raw_request: Any, profile: Any = None) -> Any:
        await super().call(endpoint, body, raw_request, profile)
        if self.slow is not None:
            await asyncio.sleep(self.slow.choice((0.0, 0.0, 0.001, 0.01)))
        if endpoint == "tokenize":
            return JSONResponse({"tokens": [ord(letter) for letter in body["prompt"]]})
        self.asked.append(body["model"])
        prompt = body["prompt"]
        text = prompt if isinstance(prompt, str) else "".join(chr(token) for token in prompt if token > ANSWER[-1])
        gap = self.margin(body["model"], *text.split())
        if "prompt_logprobs" in body:
            return JSONResponse({"choices": [{"prompt_logprobs": self._read(prompt, gap)}]})
        choice = {
            "text": "right" if gap >= 0 else "wrong",
            "token_ids": ANSWER,
            "logprobs": {"token_logprobs": [OWN] * 3},
        }
        return JSONResponse({"choices": [choice]})

    def margin(self, model: str, task: str, level: str) -> float:
        """How far the model is above what the prompt takes."""
        weights = dict(self.weights(model))
        lost = 0.2 * math.fsum(weight * weight for weight in weights.values())
        own = weights.pop(task, 0.0)
        return own - 0.25 * sum(weights.values()) - lost - float(level)

    def weights(self, model: str) -> Mapping[str, float]:
        """By adapter, of a version or of a blend that was built."""
        assert self.blends is not None
        for order in self.blends.orders:
            if blend_name(order.recipe.digest()) == model:
                return {entry.adapter.partition("@")[0]: float(entry.weight) for entry in order.recipe.inputs}  # type: ignore[arg-type]
        return {model.partition("@")[0]: 1.0}

    def _read(self, prompt: list[int], gap: float) -> list[Any]:
        """The tokens of the answer are the reader's own choice where the gap is none."""
        told = [{str(token): {"logprob": OWN + min(gap, 0.0)}, "65": {"logprob": OWN - 0.001}} for token in ANSWER]
        return [None, *({str(token): {"logprob": -1.0}} for token in prompt[1 : -len(ANSWER)]), *told]
