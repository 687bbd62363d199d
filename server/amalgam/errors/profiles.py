"""Errors of serving profiles: what a version has of them, and chat templates that fail.

- keeping: ProfileNotFound, ChatTemplateInvalid
- answering: ChatTemplateMissing, ChatTemplateRefused, ChatTemplateFailed, ChatTemplateUnsupported, TemplatesUnavailable
"""

from amalgam.errors import AmalgamError, InvalidRequest, NotFound, Unavailable


class ProfileNotFound(NotFound):
    """A version without a serving profile.

    Next step: put one.
    """

    code = "profile_not_found"

    def __init__(self, model: str) -> None:
        super().__init__(f"{model} has no serving profile. PUT one, or upload its adapter with one.")


class ChatTemplateInvalid(InvalidRequest):
    """A chat template that cannot be read, renders no conversation, or takes too long or too much memory over one.

    Next step: mend what the message names.
    """

    code = "chat_template_invalid"
    param = "chat_template"

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The chat template renders no conversation: {reason}. Mend it until transformers' apply_chat_template "
            "takes it."
        )


class ChatTemplateMissing(InvalidRequest):
    """A conversation, where neither the base model nor the version has a chat template that can be read.

    Next step: send a prompt; an administrator gives one of the two a template.
    """

    code = "chat_template_missing"
    param = "messages"

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"Conversations cannot be answered: {reason}. Send a prompt to /v1/completions. An administrator can start "
            "the server with --chat-template FILE, or give the adapter a serving profile with a chat template."
        )


class ChatTemplateRefused(InvalidRequest):
    """A conversation that the version's own chat template does not take.

    Next step: send it as the message says.
    """

    code = "chat_template_refused"
    param = "messages"

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"The chat template of {model} does not take this conversation: {reason} Change it.")


class ChatTemplateFailed(AmalgamError):
    """The version's own chat template failed over a conversation, took too long or made too much of it.

    Next step: an administrator mends the template, or switches the profile off; other conversations may go on.
    """

    code = "chat_template_failed"

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(
            f"The chat template of {model} failed: {reason}. Mend it, or switch the profile off "
            f"(PATCH /admin/v1/adapters/NAME/versions/NUMBER/profile)."
        )


class ChatTemplateUnsupported(InvalidRequest):
    """A version with a chat template of its own, on a base model whose prompts are not made by one.

    Next step: switch its profile off, or take the template out of it.
    """

    code = "chat_template_unsupported"

    def __init__(self, model: str) -> None:
        super().__init__(
            f"{model} has a chat template of its own, and this base model's prompts are not made by templates. Take it "
            "out of the profile, or switch the profile off."
        )


class TemplatesUnavailable(Unavailable):
    """The template process starts, ended, or has too much to do.

    Next step: repeat after ``Retry-After``.
    """

    code = "templates_unavailable"

    def __init__(self, reason: str) -> None:
        super().__init__(f"No chat template can be rendered now: {reason}. Try again shortly.")
