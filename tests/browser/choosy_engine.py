"""An engine whose answers depend on which weights were asked, so that a sweep has something to find."""

import zlib
from typing import Any

from starlette.responses import JSONResponse

from amalgam.engine.protocol import Endpoint
from tests.api.fake_engine import FakeEngine


class ChoosyEngine(FakeEngine):
    """Answers prompts that begin with an adapter's name: that adapter is right, the base is wrong, blends by chance."""

    async def call(self, endpoint: Endpoint, body: dict[str, Any], raw_request: Any, profile: Any = None) -> Any:
        answer = await super().call(endpoint, body, raw_request, profile)
        task = str(body.get("prompt", "")).partition(" ")[0]
        if endpoint != "completions" or not task:
            return answer
        model = str(body["model"])
        is_right = model.startswith(f"{task}@") or (
            model.startswith("blend") and zlib.crc32(f"{model} {body['prompt']}".encode()) % 3 > 0
        )
        return JSONResponse({"choices": [{"text": "right" if is_right else "wrong", "index": 0}]})
