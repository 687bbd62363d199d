"""Messages in Anthropic's dialect whose calls of tools are objects, whatever the model made of their arguments.

vLLM turns a finished answer into a message by reading each call's arguments as a JSON object, and answers 400 where
they are none: cut by the limit of tokens or by a stop sequence, or another JSON value. The request was right, and its
answer is there, so it is told as far as it goes.
"""

import json
from typing import Any, Final

from pydantic_core import from_json

from amalgam.engine.cpu import patches

_CONVERT: Final = "vllm.entrypoints.anthropic.serving:AnthropicServingMessages.messages_full_converter"


def tell_whatever_was_said(handler: Any) -> None:
    """Stand before ``handler``'s conversion of answers that are no streams; ``handler`` is vLLM's, and may be None."""
    if handler is None:
        return
    convert = handler.messages_full_converter

    def tolerant(answer: Any) -> Any:
        choice = answer.choices[0]
        is_cut = mend_calls(choice)
        message = convert(answer)
        if is_cut and message.stop_reason == "tool_use":
            # A call that a stop sequence cut short must not be run, and this reason would say that it may.
            message.stop_reason, message.stop_sequence = "stop_sequence", choice.stop_reason
        return message

    patches.put(_CONVERT, tolerant, on=handler)


def mend_calls(choice: Any) -> bool:
    """Give each call of ``choice`` arguments that are an object, and tell as text what is no call.

    A call that the limit of tokens or a stop sequence cut keeps what of its arguments is whole. Arguments that the
    model ended, and that are no object, would be run as others than it chose; they become text.

    Returns: whether a call was cut.
    """
    message, kept, is_cut = choice.message, [], False
    may_be_cut = choice.finish_reason == "length" or isinstance(choice.stop_reason, str)
    for call in message.tool_calls:
        said = call.function.arguments
        arguments = _read(said)
        if arguments is None and may_be_cut:
            arguments = _read_as_far_as_it_goes(said)
            is_cut = is_cut or arguments is not None
        if arguments is None:
            message.content = f"{message.content or ''}{said}"
            continue
        call.function.arguments = json.dumps(arguments, ensure_ascii=False)
        kept.append(call)
    if message.tool_calls and not kept and choice.finish_reason == "tool_calls":
        choice.finish_reason = "stop"
    message.tool_calls = kept
    return is_cut


def _read(text: str) -> dict[str, Any] | None:
    """The JSON object, empty where nothing was said; None where it is none."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _read_as_far_as_it_goes(text: str) -> dict[str, Any] | None:
    """What is whole of a JSON object that was cut; None where the text is no object's beginning."""
    try:
        value = from_json(text, allow_partial=True)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
