"""The template process: compiles and renders chat templates, which are programs, apart from what answers requests.

It knows no SQL, no HTTP, no model and no secret, and reads one order a line until its input ends. Its memory is
bounded, and whoever asks ends it when it is silent for too long. It is started as a module: the command line takes
longer to import than all of this.
"""

import logging
import resource
import sys
from pathlib import Path
from typing import BinaryIO, Final

from amalgam.domain.chat_template import ChatTemplates
from amalgam.domain.template_messages import (
    TemplateAnswer,
    TemplateCheck,
    TemplateFault,
    TemplateFormat,
    TemplateOrder,
    TemplateReady,
    TemplateText,
    read_order,
    unpacked,
    written_reply,
)
from amalgam.errors.internal import MessageUnreadable, RenderedTooLong, TemplateRefused

logger = logging.getLogger(__name__)

MAX_RENDERED: Final = 1 << 22
"""A template may make a prompt of at most so many characters: as long as a prompt that is sent."""
_MEMORY_BYTES: Final = 1 << 30
_LONGEST_REASON: Final = 300
_FIRST_TO_GO: Final = "1000"


def answer(templates: ChatTemplates, order: TemplateOrder) -> TemplateAnswer:
    """Check a template, or render a conversation."""
    try:
        return _result(templates, order)
    except TemplateRefused as error:
        return TemplateFault(order.id, "refused", _short(error))
    except RenderedTooLong:
        return TemplateFault(order.id, "failed", f"it made more than {MAX_RENDERED} characters")
    except MemoryError:
        return TemplateFault(order.id, "failed", "it took more memory than a template may have")
    except Exception as error:
        return TemplateFault(order.id, "failed", f"{type(error).__name__}: {_short(error)}")


def _result(templates: ChatTemplates, order: TemplateOrder) -> TemplateAnswer:
    template, values = unpacked(order.template), unpacked(order.values)
    if isinstance(order, TemplateCheck):
        return TemplateFormat(order.id, templates.content_format(template, values))
    messages, tools = unpacked(order.messages), unpacked(order.tools)
    continues = order.continue_final_message
    return TemplateText(order.id, templates.render(template, messages, tools, values, continue_final_message=continues))


def _short(error: Exception) -> str:
    """Its text, in ASCII and not at any length: a template may put a whole conversation there."""
    return str(error)[:_LONGEST_REASON].encode("ascii", "backslashreplace").decode()[:_LONGEST_REASON]


def serve(orders: BinaryIO, replies: BinaryIO) -> None:
    """Say that orders are read, and answer every one until the input ends; what is no order is left out."""
    templates = ChatTemplates(MAX_RENDERED)
    _say(TemplateReady(), replies)
    for line in orders:
        try:
            order = read_order(line)
        except MessageUnreadable as error:
            logger.warning("message_unknown bytes=%d reason=%s", len(line), error)
        else:
            _say(answer(templates, order), replies)


def _say(reply: TemplateReady | TemplateAnswer, replies: BinaryIO) -> None:
    replies.write(written_reply(reply))
    replies.flush()


def main() -> None:
    """Bound this process, and serve."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    try:
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)
    except OSError as error:
        logger.warning("oom_score_kept reason=%s", error.strerror)
    serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
