"""Two versions with two templates on the real engine: each prompt is what transformers makes of that very template."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from transformers import AutoTokenizer

from amalgam.demo.base_model import ensure_base_model
from amalgam.settings import Settings
from tests.adapter_factory import write_lora
from tests.e2e.test_adapter_lifecycle import push

LLAMA = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'system' %}{{ '<<SYS>>' + message['content'] + '<</SYS>>\n' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ALPACA = (
    "{%- for message in messages %}\n{%- if message.role == 'user' %}\n### Instruction: {{ message.content }}\n"
    "{%- else %}\n### {{ message.role | title }}: {{ message.content }}\n{%- endif %}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n### Response:\n{%- endif %}\n"
    "{%- if messages[0].content == 'Refuse.' %}{{ raise_exception('Not this one.') }}{% endif %}"
    "{%- if messages[0].content == 'Run away.' %}{{ (messages|length + 9) ** (10 ** 10) }}"
    "{% endif %}"
)
TEMPLATES = {"llama": LLAMA, "alpaca": ALPACA}
SYSTEM = "Answer in one word. ü"
TALK: list[Any] = [
    {"role": "user", "content": " Where is Rome? "},
    {"role": "assistant", "content": "Italy"},
    {"role": "user", "content": "And Oslo?"},
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(ensure_base_model(Settings().storage.cache_dir, lambda text: None))


@pytest.fixture
def _profiles(admin: httpx.Client, tmp_path: Path) -> Iterator[None]:
    """Two adapters, one of which has a system prompt too."""
    for seed, (name, template) in enumerate(TEMPLATES.items()):
        made = push(admin, name, write_lora(tmp_path / name, rank=4, seed=seed))
        assert made.status_code == 201, made.text
        more = {"system_prompt": SYSTEM, "sampling": {"temperature": 0}} if name == "llama" else {}
        path = f"/admin/v1/adapters/{name}/versions/{made.json()['version']}/profile"
        put = admin.put(path, json={"chat_template": template} | more)
        assert put.status_code == 200, put.text
    yield
    for name in TEMPLATES:
        assert admin.delete(f"/admin/v1/adapters/{name}").status_code == 200


def wanted(tokenizer: Any, name: str, messages: list[dict[str, Any]], **how: Any) -> list[int]:
    """The prompt's token ids as transformers makes them."""
    if name == "llama":
        messages = [{"role": "system", "content": SYSTEM}, *messages]
    ids = tokenizer.apply_chat_template(
        messages, chat_template=TEMPLATES[name], tokenize=True, return_dict=False, **how
    )
    return list(ids)


@pytest.mark.usefixtures("_profiles")
async def test_two_versions_with_two_templates_answer_in_one_batch_as_transformers_renders_them(
    tokenizer: Any, async_client: openai.AsyncOpenAI, client: openai.OpenAI
) -> None:
    names = [*TEMPLATES, "sql", "smollm2"] * 2

    async def ask(name: str) -> Any:
        return await async_client.chat.completions.create(
            model=name, messages=TALK, max_tokens=4, extra_body={"return_token_ids": True}
        )

    answers = await asyncio.gather(*map(ask, names))
    plain = list(tokenizer.apply_chat_template(TALK, add_generation_prompt=True, tokenize=True, return_dict=False))
    for name, answer in zip(names, answers, strict=True):
        expected = wanted(tokenizer, name, TALK, add_generation_prompt=True) if name in TEMPLATES else plain
        assert answer.prompt_token_ids == expected, name
        assert answer.usage.prompt_tokens == len(expected)


@pytest.mark.usefixtures("_profiles")
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_dialect_counts_the_tokens_of_the_versions_own_template(
    tokenizer: Any, client: openai.OpenAI, name: str
) -> None:
    def post(path: str, **body: Any) -> Any:
        return client.post(path, body={"model": name, "max_tokens": 2} | body, cast_to=httpx.Response).json()

    count = len(wanted(tokenizer, name, TALK, add_generation_prompt=True))
    assert post("/messages", messages=TALK)["usage"]["input_tokens"] == count
    one = TALK[2:]
    asked = {"model": name, "input": "And Oslo?", "max_output_tokens": 2}
    answer = client.post("/responses", body=asked, cast_to=httpx.Response).json()
    assert answer["usage"]["input_tokens"] == len(wanted(tokenizer, name, one, add_generation_prompt=True))
    root = str(client.base_url).removesuffix("/v1/")
    told = httpx.post(
        f"{root}/tokenize", json={"model": name, "messages": TALK}, headers=client.auth_headers, timeout=60
    ).json()
    assert told["tokens"] == wanted(tokenizer, name, TALK, add_generation_prompt=True)
    counted = client.post(
        "/messages/count_tokens", body={"model": name, "messages": TALK}, cast_to=httpx.Response
    ).json()
    assert counted["input_tokens"] == count
    open_end = [*TALK, {"role": "assistant", "content": "It is in"}]
    how = {"continue_final_message": True, "add_generation_prompt": False}
    told = httpx.post(
        f"{root}/tokenize", json={"model": name, "messages": open_end} | how, headers=client.auth_headers, timeout=60
    ).json()
    assert told["tokens"] == wanted(tokenizer, name, open_end, **how)


@pytest.mark.usefixtures("_profiles")
def test_a_template_that_fails_costs_its_own_request_in_time_and_in_its_words(client: openai.OpenAI) -> None:
    def status(content: str, path: str = "/chat/completions", **more: Any) -> tuple[int, str]:
        body = {"model": "alpaca", "messages": [{"role": "user", "content": content}], "max_tokens": 2} | more
        with pytest.raises(openai.APIStatusError) as refused:
            client.post(path, body=body, cast_to=httpx.Response)
        told = json.loads(refused.value.response.text)["error"]
        return refused.value.status_code, str(told.get("code"))

    assert status("Refuse.") == (400, "chat_template_refused")
    assert status("Refuse.", stream=True) == (400, "chat_template_refused")
    assert status("Refuse.", "/messages")[0] == 400
    assert status("Run away.") == (500, "chat_template_failed")
    answer = client.chat.completions.create(
        model="alpaca", messages=[{"role": "user", "content": "Go on."}], max_tokens=2
    )
    assert answer.choices
