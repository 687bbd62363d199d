"""An export of the running server: transformers on its folder says what the engine says with the adapter."""

import json
from typing import Any

import httpx
import openai
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.conftest import RunningServer
from tests.e2e.test_merged_logits import SAME_IN_VLLM, TOKENS, TOP, served_log_probs


@pytest.fixture
def server(exact_server: RunningServer) -> RunningServer:
    """In bfloat16 an adapter of small effect would not be told from what is rounded."""
    return exact_server


def exported_log_probs(folder: Any) -> torch.Tensor:
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        logits: Tensor = model(torch.tensor([TOKENS])).logits
        return logits[0, -1].log_softmax(-1)


def test_an_exported_adapter_says_what_the_served_one_says(
    admin: httpx.Client, client: openai.OpenAI, server: RunningServer
) -> None:
    body = {"name": "smollm2-sql", "expression": "sql@1", "dtype": "float32", "max_shard_bytes": 300_000_000}
    made = admin.post("/admin/v1/exports", params={"wait_s": 120}, json=body)
    assert made.status_code == 201, made.text
    assert (made.json()["changed_modules"], made.json()["shard_count"]) == (210, 2)
    folder = server.store.parent / "exports" / "smollm2-sql"
    record = json.loads((folder / "amalgam_export.json").read_text())
    assert record["recipe"]["inputs"][0]["adapter"] == "sql@1"
    assert AutoTokenizer.from_pretrained(folder).decode(TOKENS)
    exported = exported_log_probs(folder)
    served = served_log_probs(client, "sql@1")
    assert len(served) >= TOP
    assert max(abs(value - float(exported[token])) for token, value in served.items()) < SAME_IN_VLLM
    plain = served_log_probs(client, "smollm2")
    assert max(abs(value - float(exported[token])) for token, value in plain.items()) > 2 * SAME_IN_VLLM
    assert served_log_probs(client, "sql@1") == pytest.approx(served, abs=SAME_IN_VLLM)
