"""Conversations where the base model has no chat template, or none that can be read, in vLLM's own renderer."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config import ModelConfig, VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.renderers.hf import HfRenderer
from vllm.renderers.params import ChatParams
from vllm.tokenizers import cached_tokenizer_from_config

from amalgam.engine.base_template import why_no_conversations
from amalgam.engine.own_templates import begin, let_in
from amalgam.engine.protocol import CallProfile
from amalgam.errors.profiles import ChatTemplateMissing
from tests.models.pictures import demo_tokenizer_files
from tests.models.tiny_models import write_model

TEMPLATE = "{% for message in messages %}<{{ message.content }}>{% endfor %}"
FILE = "chat_template.jinja"
TALK: list[Any] = [{"role": "user", "content": "Hello"}]
AS_TEXT = {"tokenize": False}
UNREADABLE = [
    ("{% for message in messages %}{{ message.content }", "unexpected '}' (line 1)"),
    ("\n{{ messages | no_such_filter }}", "No filter named 'no_such_filter' (line 2)"),
    ("{% for message in messages %}", "The innermost block that needs to be closed is 'for' (line 1)"),
]


class Own:
    """A version's template."""

    text = TEMPLATE

    async def content_format(self) -> str:
        return "string"

    async def render(self, messages: Any, tools: Any, values: Any) -> str:
        return "its own"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_model("llama", folder)
    demo_tokenizer_files(folder)
    return folder


def renderer_of(base: Path, folder: Path, template: str | None) -> HfRenderer:
    """Vllm's, of the same files with another template, in a folder of its own: vLLM keeps tokenizers by their path."""
    for file in base.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / FILE).unlink(missing_ok=True)
    if template is not None:
        (folder / FILE).write_text(template)
    model_config = ModelConfig(str(folder), max_model_len=64)
    config = VllmConfig(model_config=model_config)
    return HfRenderer(config, cached_tokenizer_from_config(model_config))


async def rendered(renderer: HfRenderer, **params: Any) -> Any:
    """The prompt of a conversation."""
    online = SimpleNamespace(renderer=renderer, chat_template=params.get("chat_template"))
    let_in(SimpleNamespace(online_renderer=online))
    _, prompt = await renderer.render_messages_async(TALK, ChatParams(chat_template_kwargs=AS_TEXT, **params))
    return prompt["prompt"]


async def test_a_template_that_can_be_read_makes_the_prompt(base: Path, tmp_path: Path) -> None:
    renderer = renderer_of(base, tmp_path, TEMPLATE)
    assert why_no_conversations(renderer.model_config, renderer.tokenizer) is None
    assert await rendered(renderer) == "<Hello>"


@pytest.mark.parametrize(("template", "words"), [(None, "the base model has no chat template"), *UNREADABLE])
async def test_without_one_a_conversation_is_the_callers_fault_and_says_what_to_do(
    template: str | None, words: str, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    renderer = renderer_of(base, tmp_path, template)
    why = why_no_conversations(renderer.model_config, renderer.tokenizer)
    assert why is not None
    assert why.endswith(words)
    asked = begin(None)
    with pytest.raises(ChatTemplateMissing) as caught:
        await rendered(renderer)
    # Some of vLLM's handlers make an answer of their own of what is raised.
    assert asked.failure is caught.value
    assert caught.value.status == 400
    assert f"{words}. Send a prompt to /v1/completions." in caught.value.message
    # Whoever starts the server reads it there, once.
    assert [record.getMessage() for record in caplog.records if "no_conversations" in record.msg] == [
        f"no_conversations reason={why}"
    ]


@pytest.mark.parametrize("template", [None, UNREADABLE[0][0]])
async def test_a_template_that_is_given_answers_in_its_place(template: str | None, base: Path, tmp_path: Path) -> None:
    renderer = renderer_of(base, tmp_path, template)
    assert why_no_conversations(renderer.model_config, renderer.tokenizer, TEMPLATE) is None
    assert await rendered(renderer, chat_template=TEMPLATE) == "<Hello>"
    own: Any = Own()
    begin(CallProfile(own, {}))
    assert await rendered(renderer) == "its own"


async def test_what_a_readable_template_refuses_stays_its_own_words(base: Path, tmp_path: Path) -> None:
    renderer = renderer_of(base, tmp_path, "{{ raise_exception('Roles must alternate.') }}")
    assert why_no_conversations(renderer.model_config, renderer.tokenizer) is None
    with pytest.raises(VLLMValidationError, match=r"Roles must alternate\."):
        await rendered(renderer)


def test_a_model_that_answers_nothing_needs_none(base: Path, tmp_path: Path) -> None:
    tokenizer = renderer_of(base, tmp_path, None).tokenizer
    assert why_no_conversations(SimpleNamespace(runner_type="pooling"), tokenizer) is None
    assert why_no_conversations(SimpleNamespace(runner_type="generate"), None) is None
