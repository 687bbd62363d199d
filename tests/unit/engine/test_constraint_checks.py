import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError

from amalgam.engine.constraint_checks import ConstraintChecks
from amalgam.engine.token_texts import remember_short_texts


class Params:
    """Sampling parameters whose check takes a while."""

    def __init__(self, constraint: object | None, seconds: float = 0.0, failure: Exception | None = None) -> None:
        self.structured_outputs = constraint
        self.seconds = seconds
        self.failure = failure
        self.checked_on: list[str] = []

    def _validate_structured_outputs(self, *_: Any) -> None:
        self.checked_on.append(threading.current_thread().name)
        time.sleep(self.seconds)
        if self.failure is not None:
            raise self.failure


class Client:
    """Adds a request as vLLM does: it checks once more, on the loop."""

    vllm_config = SimpleNamespace(model_config=None, structured_outputs_config=None)
    input_processor = SimpleNamespace(tokenizer=None)

    def __init__(self) -> None:
        self.added: list[str] = []

    def shutdown(self, timeout: float) -> str:
        return f"shut down in {timeout}"

    async def add_request(self, request_id: str, prompt: Any, params: Any, lora_request: Any = None) -> str:
        params._validate_structured_outputs(None, None, None)
        self.added.append(request_id)
        return f"{request_id} {lora_request}"


@pytest.fixture
def client() -> Client:
    return Client()


def checks(client: Client, limit_s: float = 5.0) -> ConstraintChecks:
    made = ConstraintChecks(client, limit_s)
    made.stand_before(client)
    return made


async def test_a_constraint_is_checked_once_and_on_a_thread(client: Client) -> None:
    made = checks(client)
    params = Params(object())
    assert await client.add_request("a", None, params, lora_request="x") == "a x"
    assert len(params.checked_on) == 1
    assert params.checked_on[0].startswith("constraint check")
    made.close()


async def test_the_loop_goes_on_while_a_constraint_is_checked(client: Client) -> None:
    made = checks(client)
    task = asyncio.create_task(client.add_request("a", None, Params(object(), seconds=0.3)))
    steps = 0
    while not task.done():
        await asyncio.sleep(0.01)
        steps += 1
    assert steps > 5
    made.close()


async def test_the_prompts_of_one_request_share_a_check(client: Client) -> None:
    made = checks(client)
    shared = object()
    many = [Params(shared, seconds=0.1) for _ in range(8)]
    await asyncio.gather(*(client.add_request(str(i), None, params) for i, params in enumerate(many)))
    assert sum(len(params.checked_on) for params in many) == 1
    assert len(client.added) == 8
    made.close()


async def test_without_a_constraint_nothing_waits(client: Client) -> None:
    made = checks(client)
    params = Params(None)
    await client.add_request("a", None, params)
    assert params.checked_on == ["MainThread"]
    made.close()


async def test_what_vllm_refuses_is_refused_and_what_takes_too_long_as_well(client: Client) -> None:
    made = checks(client, limit_s=0.05)
    with pytest.raises(VLLMValidationError, match="bad"):
        await client.add_request("a", None, Params(object(), failure=VLLMValidationError("bad")))
    with pytest.raises(VLLMValidationError, match=r"longer than 0\.05 seconds.*simpler"):
        await client.add_request("b", None, Params(object(), seconds=0.3))
    assert client.added == []
    made.close()


async def test_the_threads_end_with_the_client(client: Client) -> None:
    checks(client)
    assert client.shutdown(timeout=1.0) == "shut down in 1.0"
    with pytest.raises(RuntimeError):
        await client.add_request("a", None, Params(object()))


def test_short_texts_are_asked_of_the_tokenizer_once() -> None:
    asked: list[Any] = []

    def decode(ids: Any, **options: Any) -> str:
        asked.append(ids)
        return f"{ids} {options}"

    tokenizer = SimpleNamespace(decode=decode)
    remember_short_texts(tokenizer)
    assert tokenizer.decode([5]) == tokenizer.decode([5]) == "[5] {}"
    assert asked == [[5]]
    # What is long, or asked otherwise, is the tokenizer's own business.
    for _ in range(2):
        tokenizer.decode([1] * 6)
        tokenizer.decode([5], skip_special_tokens=True)
        assert tokenizer.decode(7) == "7 {}"
    assert len(asked) == 7
