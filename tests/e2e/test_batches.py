"""A batch on the real engine: an adapter, an alias and a blend in one file, answered as clients are."""

import json
import time
from typing import Any

import httpx
import openai

CHAT: Any = [{"role": "user", "content": "How many users are there?"}]
MODELS = {"adapter": "sql", "alias": "asked-in-batches", "blend": "sql + 0.375*json", "base": "smollm2"}


def ended(client: openai.OpenAI, batch_id: str) -> Any:
    deadline = time.monotonic() + 120
    while (batch := client.batches.retrieve(batch_id)).status in ("validating", "in_progress", "finalizing"):
        assert time.monotonic() < deadline, batch
        time.sleep(0.1)
    return batch


def test_an_adapter_an_alias_and_a_blend_in_one_batch(admin: httpx.Client, client: openai.OpenAI) -> None:
    target = {"targets": [{"model": "json", "weight": 1}]}
    assert admin.put("/admin/v1/aliases/asked-in-batches", json=target).status_code in (200, 201)
    body = {"messages": CHAT, "max_tokens": 6, "temperature": 0}
    lines = [
        {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body | {"model": model}}
        for name, model in MODELS.items()
    ]
    text = "\n".join(json.dumps(line) for line in [*lines, lines[0] | {"custom_id": "none", "url": "/v1/x"}])
    file = client.files.create(file=("asked.jsonl", text.encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    done = ended(client, batch.id)
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 4, 1)
    answers = [json.loads(line) for line in client.files.content(done.output_file_id).text.splitlines()]
    assert [one["custom_id"] for one in answers] == list(MODELS)
    told = {one["custom_id"]: one["response"]["body"] for one in answers}
    assert (told["adapter"]["model"], told["alias"]["model"]) == ("sql@1", "json@1")
    assert told["blend"]["model"].startswith("blend@")
    assert all(answer["usage"]["completion_tokens"] >= 1 for answer in told.values())
    [refused] = client.files.content(done.error_file_id).text.splitlines()
    assert json.loads(refused)["error"]["code"] == "invalid_batch_line"
    for file_id in (done.output_file_id, done.error_file_id, file.id):
        assert client.files.delete(file_id).deleted
