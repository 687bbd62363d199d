"""A fake engine that says log-probabilities: of the four tokens of an answer merges read so many as their own."""

from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse

from tests.api.fake_engine import FakeEngine

ANSWER = (3, 4, 5, 6)


@dataclass
class ReadingEngine(FakeEngine):
    """``agreed`` of the four tokens are a merge's own first choice."""

    agreed: int = 4
    asked: list[str] = field(default_factory=list)
    """Who answered and who read, in order."""

    async def call(self, endpoint: Any, body: dict[str, Any], raw_request: Any, profile: Any = None) -> Any:
        await super().call(endpoint, body, raw_request, profile)
        if endpoint == "tokenize":
            return JSONResponse({"tokens": [1, 2]})
        self.asked.append(body["model"])
        if "prompt_logprobs" not in body:
            return JSONResponse({"choices": [{"token_ids": ANSWER, "logprobs": {"token_logprobs": [-0.1] * 4}}]})
        told = [
            {str(token): {"logprob": -0.1 if place < self.agreed else -2.0}, "9": {"logprob": -1.0}}
            for place, token in enumerate(ANSWER)
        ]
        return JSONResponse({"choices": [{"prompt_logprobs": [None, {"2": {"logprob": -1.0}}, *told]}]})
