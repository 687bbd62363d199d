"""Templates render what transformers renders of them, and small programs in them come to an end or to an error."""

from typing import Any

import pytest
from jinja2.exceptions import SecurityError
from transformers.utils.chat_template_utils import render_jinja_template

from amalgam.domain.chat_template import ChatTemplates
from amalgam.errors.internal import RenderedTooLong, TemplateRefused

CHATML = (
    "{%- for message in messages %}\n{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endfor %}\n{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
LLAMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = false %}{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}"
    "{% endif %}{% if loop.index0 == 0 and system %}"
    "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TOOLS = (
    "{% for tool in tools or [] %}\n    {{ tool | tojson(indent=2) }}\n{% endfor %}\n"
    "{% for message in messages %}{% if message.role == 'system' %}{% continue %}{% endif %}"
    "{% generation %}{{ message.content }}{% endgeneration %}{% if loop.index > 3 %}{% break %}{% endif %}{% endfor %}"
)
PARTS = "{% for message in messages %}{% for part in message.content %}<{{ part.text }}>{% endfor %}{% endfor %}"
HI: list[dict[str, Any]] = [{"role": "user", "content": " Grüße & <b> "}]
TALK = [{"role": "system", "content": "Be\nbrief."}, *HI, {"role": "assistant", "content": "Ja "}]
TOOL = [{"type": "function", "function": {"name": "f", "description": "ü <x>", "parameters": {"b": 1, "a": None}}}]
VALUES = {"bos_token": "<s>", "eos_token": "</s>", "enable_thinking": False}


@pytest.mark.parametrize("template", [CHATML, LLAMA, TOOLS], ids=["chatml", "llama", "tools"])
@pytest.mark.parametrize("messages", [HI, TALK], ids=["hi", "talk"])
@pytest.mark.parametrize("tools", [None, TOOL], ids=["bare", "tools"])
@pytest.mark.parametrize("mode", ["add_generation_prompt", "continue_final_message", ""])
def test_a_template_renders_as_transformers_renders_it(
    template: str, messages: list[dict[str, Any]], tools: Any, mode: str
) -> None:
    switches: dict[str, Any] = {mode: True} if mode else {}
    [wanted], _ = render_jinja_template([messages], tools=tools, chat_template=template, **VALUES, **switches)
    continues = bool(switches.pop("continue_final_message", False))
    made = ChatTemplates(1 << 20).render(template, messages, tools, VALUES | switches, continue_final_message=continues)
    assert made == wanted


def test_a_template_tells_what_it_reads_of_a_message() -> None:
    templates = ChatTemplates(1 << 20)
    assert [templates.content_format(one, VALUES) for one in (CHATML, LLAMA, PARTS)] == ["string", "string", "openai"]
    assert templates.content_format("always the same", VALUES) == "string"


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{{ raise_exception('only ' ~ messages|length) }}", TemplateRefused),
        ("{% for i in range(99999) %}{{ 'x' * 999 }}{% endfor %}", RenderedTooLong),
        ("{{ messages.append(1) }}", SecurityError),
        ("{{ ''.__class__.__mro__ }}", SecurityError),
        ("{{ messages[0].content.nothing.deeper }}", Exception),
        ("{% if %}", Exception),
    ],
)
def test_a_template_that_must_not_go_on_ends_with_an_error(template: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        ChatTemplates(1 << 20).render(template, HI)


def test_a_conversation_without_text_at_its_end_cannot_be_continued() -> None:
    for last in ({"role": "assistant", "content": None}, {"role": "assistant", "content": []}):
        with pytest.raises(TemplateRefused):
            ChatTemplates(1 << 20).render(CHATML, [*HI, last], continue_final_message=True)
    with pytest.raises(TemplateRefused):
        ChatTemplates(1 << 20).render("nothing of it", HI, continue_final_message=True)
