"""Chat templates of single versions, inside vLLM's renderer, and base models that have none.

Every dialect of vLLM's handlers makes its prompt through one method of one renderer, with the base model's template.
There a request's own template takes its place, and is rendered by the template process: in this one it could stop every
other request. A context variable carries it through vLLM's tasks.
"""

import logging
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Final

from vllm.renderers.hf import (
    HfRenderer,
    _consolidate_system_messages,
    _convert_developer_to_system,
    _detect_developer_role_support,
)

from amalgam.engine.base_template import UNUSABLE, why_no_conversations, why_unusable
from amalgam.engine.cpu import patches
from amalgam.engine.protocol import CallProfile, OwnTemplate
from amalgam.errors import AmalgamError
from amalgam.errors.profiles import ChatTemplateMissing, ChatTemplateUnsupported

logger = logging.getLogger(__name__)

_RENDER: Final = "vllm.renderers.hf:HfRenderer.render_messages_async"
_CONVERT: Final = "vllm.entrypoints.anthropic.serving:AnthropicServingMessages.to_chat_completion_request"
_RENDERERS_OWN: Final = frozenset(
    {
        *("chat_template", "tokenize", "return_dict", "return_tensors", "return_assistant_tokens_mask", "padding"),
        *("truncation", "max_length", "tokenizer_kwargs"),
    }
)
"""The method of transformers takes these beside the values for the template."""


@dataclass
class Asked:
    """One call, from vLLM's handler down to its renderer."""

    profile: CallProfile | None
    failure: AmalgamError | None = field(default=None)
    """The template came to this; vLLM's handlers may turn it into an answer of their own."""


_asked: ContextVar[Asked | None] = ContextVar("amalgam_profile", default=None)


def begin(profile: CallProfile | None) -> Asked:
    """Have the handler that this task calls next answer with ``profile``."""
    asked = Asked(profile)
    _asked.set(asked)
    return asked


def let_in(app_state: Any) -> None:
    """Let vLLM's handlers, as they were built, answer with profiles."""
    online = getattr(app_state, "online_renderer", None)
    if online is not None and isinstance(online.renderer, HfRenderer):
        _warn_of_none(online)
        _hook_renderer(online.renderer)
    elif online is not None:
        _refuse_templates(online.renderer)
    messages = getattr(app_state, "anthropic_serving_messages", None)
    if messages is not None:
        _hook_messages(messages)


def _profile() -> CallProfile | None:
    asked = _asked.get()
    return None if asked is None else asked.profile


def _template() -> OwnTemplate | None:
    profile = _profile()
    return None if profile is None else profile.template


def _warn_of_none(online: Any) -> None:
    why = why_no_conversations(online.renderer.model_config, online.renderer.tokenizer, online.chat_template)
    if why is not None:
        logger.warning("no_conversations reason=%s", why)


def _hook_renderer(renderer: Any) -> None:
    plain_messages, plain_apply = renderer.render_messages_async, renderer._apply_chat_template_async

    async def render_messages(messages: Any, params: Any) -> Any:
        template = _template()
        if template is not None:
            # The base model's template stays in ``params``, so that this one is never compiled here.
            params = replace(params, chat_template_content_format=await _noted(template.content_format()))
        return await plain_messages(messages, params)

    async def apply(model_config: Any, tokenizer: Any, conversation: Any, **given: Any) -> Any:
        template = _template()
        if template is None:
            try:
                return await plain_apply(model_config, tokenizer, conversation, **given)
            except UNUSABLE as error:
                raise _kept(ChatTemplateMissing(why_unusable(error))) from None
        tools = given.pop("tools", None)
        values = {**tokenizer.special_tokens_map, **{k: v for k, v in given.items() if k not in _RENDERERS_OWN}}
        spoken = _without_developers(template.text, conversation)
        text = await _noted(template.render(spoken, tools, values))
        return tokenizer.encode(text, add_special_tokens=False) if given.get("tokenize") else text

    patches.put(_RENDER, render_messages, on=renderer)
    patches.put("vllm.renderers.hf:HfRenderer._apply_chat_template_async", apply, on=renderer)


def _refuse_templates(renderer: Any) -> None:
    plain = renderer.render_messages_async

    async def render_messages(messages: Any, params: Any) -> Any:
        template = _template()
        if template is not None:
            raise _kept(ChatTemplateUnsupported(template.model))
        return await plain(messages, params)

    patches.put(_RENDER, render_messages, on=renderer)


def _hook_messages(handler: Any) -> None:
    """Anthropic's dialect has no fields for some defaults; what its requests are turned into has."""
    plain = handler.to_chat_completion_request

    def to_chat_completion_request(request: Any, **given: Any) -> Any:
        chat = plain(request, **given)
        profile = _profile()
        for name, value in ({} if profile is None else profile.unsaid).items():
            setattr(chat, name, value)
        return chat

    patches.put(_CONVERT, to_chat_completion_request, on=handler)


async def _noted(work: Any) -> Any:
    try:
        return await work
    except AmalgamError as error:
        raise _kept(error) from None


def _kept(error: AmalgamError) -> AmalgamError:
    """``error``, which whoever called vLLM's handler is told of, whatever is made of it on the way."""
    asked = _asked.get()
    if asked is not None:
        asked.failure = error
    return error


def _without_developers(template: str, conversation: Any) -> Any:
    """Make them messages of the system, as vLLM does for a template that knows no such role."""
    roles = {message["role"] for message in conversation}
    if "developer" not in roles or _detect_developer_role_support(template):
        return conversation
    return _consolidate_system_messages(_convert_developer_to_system(conversation))
