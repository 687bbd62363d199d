"""An alias on the real engine: flipped all the time, each answer is wholly that of the version it was admitted to."""

import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from amalgam_demo.tasks import generate
from tests.e2e.conftest import RunningServer

FLIPS = int(os.environ.get("AMALGAM_TEST_FLIPS", "120"))
"""A thousand take a minute of a busy machine; they are for a change that is about aliases."""
ASKED_EVERY = 40
"""Flips between two requests that nothing overtakes."""
ALIKE = 12
"""Characters that a batch of another size does not change; adapters differ before."""
QUESTION: Any = {
    "messages": [
        {
            "role": "user",
            "content": "CREATE TABLE tenants (tenant TEXT, building TEXT, rent INTEGER);\n"
            "Question: What is the sum of the rent of tenants whose building is Elm Lodge?\n"
            "Answer with one SQL query only.",
        }
    ],
    "temperature": 0,
    "max_tokens": 12,
    "ignore_eos": True,
}


@dataclass(frozen=True)
class Answer:
    """What one request got."""

    model: str
    text: str


def ask(client: httpx.Client, model: str, *, stream: bool = False) -> Answer:
    """One request; every place that names the version names the same one."""
    with client.stream("POST", "/v1/chat/completions", json=QUESTION | {"model": model, "stream": stream}) as answer:
        answer.read()
    assert answer.status_code == 200, answer.text
    parts = list(_events(answer.text)) if stream else [answer.json()]
    models = {part["model"] for part in parts} | {answer.headers["x-amalgam-adapter"]}
    assert len(models) == 1, models
    choices = [choice for part in parts for choice in part["choices"]]
    texts = [(choice["delta"] if stream else choice["message"]).get("content") or "" for choice in choices]
    return Answer(models.pop(), "".join(texts))


def _events(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


@pytest.fixture
def alias(admin: httpx.Client) -> Iterator[str]:
    made = admin.put("/admin/v1/aliases/flipped", json={"targets": [{"model": "sql@1"}], "revision": 0})
    assert made.status_code == 201, made.text
    yield "flipped"
    assert admin.delete("/admin/v1/aliases/flipped").status_code == 200


@pytest.mark.slow
def test_an_alias_flipped_all_the_time_under_load(server: RunningServer, admin: httpx.Client, alias: str) -> None:
    """F20."""
    targets = ("sql@1", "json@1", "code@1")
    golden = {model: ask(admin, model).text[:ALIKE] for model in targets}
    assert len(set(golden.values())) == len(targets)
    done = threading.Event()

    def load(stream: bool) -> list[Answer]:
        answers = []
        with server.client() as client:
            while not done.is_set():
                answers.append(ask(client, alias, stream=stream))
        return answers

    with ThreadPoolExecutor(3) as pool:
        clients = [pool.submit(load, stream) for stream in (True, True, False)]
        try:
            inline = list(_flip(admin, alias, targets))
        finally:
            done.set()
        answers = [answer for client in clients for answer in client.result()]
    assert len(answers) >= 3
    for answer in (*answers, *inline):
        assert answer.text[:ALIKE] == golden[answer.model]
    asked = sum(
        server.metric(f'amalgam_alias_requests_total{{alias="{alias}",adapter="{model}",code="200"}}')
        for model in targets
    )
    assert asked == len(answers) + len(inline)
    assert server.metric('amalgam_adapter_versions{tier="held"}') == 0


def _flip(admin: httpx.Client, alias: str, targets: tuple[str, ...]) -> Iterator[Answer]:
    """Each flip is meant for the state that the one before left; now and then a request right behind one."""
    for index in range(1, FLIPS + 1):
        target = targets[index % len(targets)]
        body = {"targets": [{"model": target}], "revision": index}
        flipped = admin.put(f"/admin/v1/aliases/{alias}", json=body)
        assert flipped.status_code == 200, flipped.text
        assert flipped.json()["revision"] == index + 1
        if index % ASKED_EVERY == 0:
            answer = ask(admin, alias)
            assert answer.model == target
            yield answer


@pytest.mark.slow
def test_adapters_find_the_examples_of_a_router(server: RunningServer) -> None:
    """The base model reads prompts without labels in the merge process, and the demo's adapters tell them apart.

    Without units for bfloat16 the reading takes two minutes and more.
    """
    tasks = ("sql", "json", "code")
    prompts = [item.prompt for task in tasks for item in generate(task, "train", 8, 1)]
    router = {"candidates": tasks, "by": {"adapters": {"prompts": [*prompts, "Tell me a story about a fox."]}}}
    with server.admin(timeout_s=600) as admin:
        made = admin.put("/admin/v1/aliases/by-adapters", json={"router": router})
        assert made.status_code == 201, made.text
        try:
            assert made.json()["router"]["examples"] == [8, 8, 8], "the story is nobody's"
            for task in tasks:
                body = {"prompt": generate(task, "test", 1, 2)[0].prompt}
                explained = admin.post("/admin/v1/aliases/by-adapters:explain", json=body).json()
                assert explained["model"] == task, explained
        finally:
            admin.delete("/admin/v1/aliases/by-adapters")
