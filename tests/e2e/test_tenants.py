"""A key that was made while the server runs, through the real openai client: it asks for what is its own alone."""

from typing import Any

import openai
import pytest

from tests.e2e.conftest import RunningServer


def test_a_key_of_a_tenant_asks_for_what_is_in_its_scope(server: RunningServer) -> None:
    with server.admin() as admin:
        assert admin.post("/admin/v1/tenants", json={"id": "e2e"}).status_code in (201, 409)
        body = {"tenant": "e2e", "models": ["sql"], "blends": "none"}
        made = admin.post("/admin/v1/keys", json=body).json()
        targets = {"targets": [{"model": "json", "weight": 1}]}
        assert admin.put("/admin/v1/aliases/e2e-live", json=targets).status_code == 201
        via = admin.post("/admin/v1/keys", json={"tenant": "e2e", "models": ["e2e-*"]}).json()
    question: Any = [{"role": "user", "content": "How many users are there?"}]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=made["key"], max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["sql"]
        answer = client.chat.completions.create(model="sql", messages=question, max_tokens=4)
        assert answer.model == "sql@1"
        for model in ("json", "sql@7", "nobody"):
            with pytest.raises(openai.NotFoundError):
                client.chat.completions.create(model=model, messages=question, max_tokens=4)
        with pytest.raises(openai.PermissionDeniedError):
            client.chat.completions.create(model="smollm2", messages=question, max_tokens=4)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=via["key"], max_retries=0) as client:
        # vLLM's own answers and events name the version; the key is told the alias alone.
        whole = client.chat.completions.create(model="e2e-live", messages=question, max_tokens=4)
        assert whole.model == "e2e-live"
        stream: Any = client.chat.completions.create(model="e2e-live", messages=question, max_tokens=4, stream=True)
        assert {event.model for event in stream} == {"e2e-live"}
        said = client.responses.create(model="e2e-live", input="hi", max_output_tokens=16)
        assert said.model == "e2e-live"
        assert "json@" not in said.model_dump_json()
    with server.admin() as admin:
        assert admin.delete("/admin/v1/aliases/e2e-live").status_code == 200
        for key in (made, via):
            assert admin.post(f"/admin/v1/keys/{key['id']}:revoke").status_code == 200
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=made["key"], max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()
