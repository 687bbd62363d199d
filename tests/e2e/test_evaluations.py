"""An evaluation on the running server: numbers that can be checked against what clients are told."""

import time
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.conftest import RunningServer

CHAT = [{"role": "user", "content": "Say the word blue."}]
BLEND = "sql + 0.3125*json"


@pytest.fixture
def server(exact_server: RunningServer) -> RunningServer:
    """An evaluation's calls share batches, and what clients are told is asked for alone."""
    return exact_server


def ended(admin: httpx.Client, evaluation_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        report = dict(admin.get(f"/admin/v1/evaluations/{evaluation_id}").json())
        if report["evaluation"]["state"] not in ("queued", "running"):
            return report
        time.sleep(0.1)
    raise AssertionError(report)


def test_an_evaluation_tells_what_clients_would_see(admin: httpx.Client, client: openai.OpenAI) -> None:
    text = client.completions.create(model="sql", prompt="The sky is", max_tokens=4, temperature=0).choices[0].text
    items = [
        {"prompt": "The sky is", "reference": text, "pattern": "^[^ ]?"},
        {"messages": CHAT, "reference": " blue", "task": "chat"},
    ]
    body = {"targets": ["sql", BLEND], "metrics": ["exact_match", "regex", "log_likelihood"], "items": items}
    made = admin.post("/admin/v1/evaluations", json=body | {"max_tokens": 4})
    assert made.status_code == 202, made.text
    report = ended(admin, made.json()["id"])
    assert (report["evaluation"]["state"], report["refused"]) == ("done", [])
    assert report["evaluation"]["targets"][1]["pinned"] == "0.3125*json@1 + sql@1"
    means = {(cell["target"], cell["task"], cell["metric"]): cell["mean"] for cell in report["table"]}
    assert means[0, "all", "exact_match"] == means[0, "all", "regex"] == 1
    for target, model in enumerate(("sql", BLEND)):
        told = (
            client.completions.create(
                model=model, prompt=f"The sky is{text}", max_tokens=1, temperature=0, logprobs=0, echo=True
            )
            .choices[0]
            .logprobs
        )
        assert told is not None
        assert told.token_logprobs is not None
        assert told.tokens is not None
        # Behind the question, and before the one new token.
        before = len(admin.post("/tokenize", json={"prompt": "The sky is"}).json()["tokens"])
        of_reference = told.token_logprobs[before:-1]
        assert means[target, "all", "log_likelihood"] == pytest.approx(sum(of_reference) / len(of_reference), abs=0.02)
    assert means[0, "chat", "log_likelihood"] != pytest.approx(means[1, "chat", "log_likelihood"], abs=1e-3)
