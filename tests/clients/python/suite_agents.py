"""The Agents SDK: runs with a function tool and with an output by a schema, over chats and over Responses."""

from collections.abc import AsyncIterator
from typing import Literal, TypeAlias

import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    function_tool,
)
from openai import AsyncOpenAI
from pydantic import BaseModel

QUIET = RunConfig(tracing_disabled=True)


class City(BaseModel):
    city: Literal["Oslo", "Rome"]


Spoken: TypeAlias = OpenAIChatCompletionsModel | OpenAIResponsesModel


@pytest.fixture(params=[OpenAIChatCompletionsModel, OpenAIResponsesModel], ids=["chat", "responses"])
async def model(request: pytest.FixtureRequest, url: str, key: str) -> AsyncIterator[Spoken]:
    async with AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=120) as client:
        yield request.param(model="sql", openai_client=client)


# Answers have to end by themselves: over Responses the SDK refuses one that the limit of tokens has cut.
BOUND = ModelSettings(max_tokens=128, temperature=0)


async def test_a_streamed_run(model: Spoken) -> None:
    agent = Agent(name="one", instructions="Be brief.", model=model, output_type=City, model_settings=BOUND)
    run = Runner.run_streamed(agent, "Name a city.", run_config=QUIET)
    kinds = {event.type async for event in run.stream_events()}
    assert "raw_response_event" in kinds
    assert isinstance(run.final_output, City)


async def test_a_run_with_a_function_tool(model: Spoken) -> None:
    calls: list[str] = []

    @function_tool  # type: ignore[untyped-decorator]
    def weather(city: Literal["Oslo", "Rome"]) -> str:
        """The weather in a city."""
        calls.append(city)
        return "Rain."

    settings = ModelSettings(max_tokens=48, temperature=0, tool_choice="weather")
    agent = Agent(name="one", instructions="Use the tool.", model=model, tools=[weather], model_settings=settings)
    run = await Runner.run(agent, "What is the weather in Oslo?", max_turns=3, run_config=QUIET)
    assert calls
    assert isinstance(run.final_output, str)


async def test_an_output_by_a_schema(model: Spoken) -> None:
    settings = ModelSettings(max_tokens=48, temperature=0)
    agent = Agent(name="one", instructions="Be brief.", model=model, output_type=City, model_settings=settings)
    run = await Runner.run(agent, "Name a city.", run_config=QUIET)
    assert isinstance(run.final_output, City)
