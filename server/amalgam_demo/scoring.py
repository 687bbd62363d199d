"""Measures a model on a demo task, through a running server's OpenAI plane."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx

from amalgam.errors.demo import DemoServerFailed
from amalgam_demo.task_item import TaskItem
from amalgam_demo.tasks import score

CONCURRENCY: Final = 8
"""So many requests are in flight."""
MAX_TOKENS: Final = 96
"""An answer has at most so many tokens; every reference is shorter."""
TIMEOUT_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Miss:
    """A wrong answer, for people to look at."""

    item: TaskItem
    answer: str


@dataclass(frozen=True, slots=True)
class Score:
    """What a model got right.

    Attributes:
        right: Items answered right. total: Items asked.
        by_template: Template -> (right, total).
        misses: Every wrong answer.
    """

    right: int
    total: int
    by_template: dict[str, tuple[int, int]]
    misses: tuple[Miss, ...]

    @property
    def percent(self) -> float:
        """Share of right answers, 0 to 100."""
        return 100.0 * self.right / self.total if self.total else 0.0


def grade(items: Sequence[TaskItem], answers: Sequence[str]) -> Score:
    """Score ``answers`` to ``items``, in the same order."""
    right: Counter[str] = Counter()
    misses: list[Miss] = []
    for item, answer in zip(items, answers, strict=True):
        if score(item.task, item, answer):
            right[item.template] += 1
        else:
            misses.append(Miss(item, answer))
    totals = Counter(item.template for item in items)
    table = {template: (right[template], totals[template]) for template in sorted(totals)}
    return Score(right=sum(right.values()), total=len(items), by_template=table, misses=tuple(misses))


def connect(url: str, api_key: str | None) -> httpx.AsyncClient:
    """A client for the server at ``url``; close it after use."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT_S)


async def base_model_name(client: httpx.AsyncClient) -> str:
    """The name of the model that the server's adapters sit on: the first listed one without a parent.

    Raises:
        DemoServerFailed: The server does not answer, or lists none.
    """
    listed = await _call(client, "GET", "/v1/models", None)
    names = [model["id"] for model in listed.get("data", []) if not model.get("parent")]
    if not names:
        raise DemoServerFailed(str(client.base_url), "it lists no base model")
    return str(names[0])


async def server_answers(
    client: httpx.AsyncClient,
    model: str,
    items: Sequence[TaskItem],
    on_answer: Callable[[], None],
    concurrency: int = CONCURRENCY,
) -> list[str]:
    """The greedy answer of ``model`` to every item, in the items' order, ``concurrency`` requests at a time.

    Raises:
        DemoServerFailed: A request failed.
    """
    slots = asyncio.Semaphore(concurrency)

    async def answer(item: TaskItem) -> str:
        body = {"model": model, "messages": item.messages, "temperature": 0, "max_tokens": MAX_TOKENS}
        async with slots:
            reply = await _call(client, "POST", "/v1/chat/completions", body)
        on_answer()
        return str(reply["choices"][0]["message"]["content"] or "")

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answer(item)) for item in items]
    except ExceptionGroup as failures:
        # One refusal says it all; the others were cancelled or say the same.
        refused = failures.subgroup(DemoServerFailed)
        if refused is None:
            raise
        raise refused.exceptions[0] from failures
    return [task.result() for task in tasks]


async def _call(client: httpx.AsyncClient, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
    try:
        reply = await client.request(method, path, json=body)
    except httpx.HTTPError as error:
        raise DemoServerFailed(str(client.base_url), type(error).__name__) from error
    if reply.status_code != httpx.codes.OK:
        raise DemoServerFailed(str(client.base_url), f"{path} answered {reply.status_code}: {reply.text[:200]}")
    content: dict[str, Any] = reply.json()
    return content
