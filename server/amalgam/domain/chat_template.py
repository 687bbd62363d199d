"""Chat templates as transformers reads them: the same sandbox, filters and functions, and what they render.

A template is a program. It may loop without end, ask for more memory than there is, or raise a number to a power that
takes hours, some of that while it is compiled. So nothing here runs where requests are answered; see
`amalgam.workers.template_process`.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from amalgam.domain.clock import utc_now
from amalgam.domain.template_messages import ContentFormat
from amalgam.errors.internal import RenderedTooLong, TemplateRefused

Message = Mapping[str, Any]
_PROBE: Final = "amalgam-probe"
_CONTINUED: Final = "amalgam-continued-here"
_MARK: Final = f"{_CONTINUED} "
"""Its blank tells whether the template trims what it is given."""
_FORMS: Final[tuple[ContentFormat, ...]] = ("string", "openai")
_KEPT: Final = 64


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` … ``{% endgeneration %}``: marks for training; what is inside is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012  (as jinja2 declares it)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """The statements inside."""
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def _raise_exception(message: str) -> None:
    raise TemplateRefused(message)


def _tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: jinja2's own filter escapes what is special in HTML."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class ChatTemplates:
    """Compiles templates, remembers some, and renders.

    Args:
        max_rendered: longest text that comes out, characters.
        now: the time of day, for templates that say it.
    """

    def __init__(self, max_rendered: int, now: Callable[[], datetime] = utc_now) -> None:
        self._max_rendered = max_rendered
        self._compiled: OrderedDict[str, jinja2.Template] = OrderedDict()
        self._environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        self._environment.filters["tojson"] = _tojson
        self._environment.globals["raise_exception"] = _raise_exception
        self._environment.globals["strftime_now"] = lambda form: now().astimezone().strftime(form)

    def render(
        self,
        template: str,
        messages: Sequence[Message],
        tools: Sequence[Message] | None = None,
        values: Mapping[str, Any] | None = None,
        *,
        continue_final_message: bool = False,
    ) -> str:
        """The prompt of a conversation.

        Args:
            template: in Jinja.
            messages: what the template calls ``messages``.
            tools: the same of ``tools``.
            values: what else it may read.
            continue_final_message: leave the last message open, so that the answer goes on where it ends.

        Raises:
            TemplateRefused, RenderedTooLong: see there.
            Exception: whatever a faulty template comes to.
        """
        if continue_final_message:
            return _before_mark(self._rendered(template, _marked(messages), tools, values or {}))
        return self._rendered(template, messages, tools, values or {})

    def _rendered(
        self, template: str, messages: Sequence[Message], tools: Sequence[Message] | None, values: Mapping[str, Any]
    ) -> str:
        pieces, length = [], 0
        given = {"documents": None, "add_generation_prompt": False} | dict(values)
        for piece in self._template(template).generate(messages=messages, tools=tools, **given):
            length += len(piece)
            if length > self._max_rendered:
                raise RenderedTooLong
            pieces.append(piece)
        text = "".join(pieces)
        # What cannot be encoded is no prompt.
        text.encode()
        return text

    def _template(self, template: str) -> jinja2.Template:
        found = self._compiled.get(template)
        if found is None:
            found = self._compiled[template] = self._environment.from_string(template)
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(template)
        return found

    def content_format(self, template: str, values: Mapping[str, Any]) -> ContentFormat:
        """What the template reads of a message's content, by rendering small conversations.

        Raises:
            Exception: it renders none of them; the first one's failure.
        """
        failures: list[Exception] = []
        has_rendered = False
        for form in _FORMS:
            for roles in (("user",), ("system", "user"), ("user", "assistant", "user")):
                try:
                    text = self.render(template, [_said(role, form) for role in roles], None, values)
                except RenderedTooLong:
                    raise
                except Exception as error:
                    failures.append(error)
                    continue
                has_rendered = True
                # A list that is printed as it is was not read as parts.
                if _PROBE in text and (form == "string" or f"'text': '{_PROBE}'" not in text):
                    return form
        if not has_rendered:
            raise failures[0]
        return "string"


def _said(role: str, form: ContentFormat) -> Message:
    return {"role": role, "content": _PROBE if form == "string" else [{"type": "text", "text": _PROBE}]}


def _marked(messages: Sequence[Message]) -> list[Message]:
    """The same conversation, with a mark at the end of the last message's text."""
    *before, last = messages
    content = last.get("content")
    if isinstance(content, str):
        return [*before, {**last, "content": content + _MARK}]
    parts = [dict(part) for part in content or ()]
    for part in reversed(parts):
        if isinstance(part.get("text"), str):
            part["text"] += _MARK
            return [*before, {**last, "content": parts}]
    raise TemplateRefused("The last message has no text to go on with.")


def _before_mark(text: str) -> str:
    at = text.rfind(_CONTINUED)
    if at < 0:
        raise TemplateRefused("The template does not show the last message, so it cannot be continued.")
    return text[:at] if text.startswith(_MARK, at) else text[:at].rstrip()
