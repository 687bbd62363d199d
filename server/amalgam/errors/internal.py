"""Faults on their way to somebody who knows more: no request is answered with them.

They have no code and no status. Who catches one makes an error of the tree of it, a finding about an adapter, or a line
in the log.
"""


class HeaderFault(Exception):
    """What does not add up in the header of a file; becomes an error that names the file."""


class UnpackingFault(Exception):
    """A packed weight of a base model whose numbers cannot be read; the text ends a sentence."""


class PatternRefused(ValueError):
    """A key of a table by module name that is no name and no tame expression; the message ends a sentence."""


class PreloadRefused(Exception):
    """The engine's worker cannot read an adapter; the text is vLLM's."""


class LoopReturned(Exception):
    """A loop of the server returned, which none of them may."""


class MessageUnreadable(Exception):
    """A line between two processes is no message of those that are expected; says why, and shows none of its values."""


class TemplateRefused(Exception):
    """A chat template called ``raise_exception``: it does not take this conversation."""


class RenderedTooLong(Exception):
    """The text that a chat template renders is longer than the limit."""


class SoundUnusable(ValueError):
    """A sound of a request that cannot be unpacked, or not be brought to the model's rate.

    Attributes:
        why: a clause, without a full stop.
        step: what to send, without one.
    """

    def __init__(self, why: str, step: str) -> None:
        super().__init__(f"{why}. {step}")
        self.why, self.step = why, step


class ProcessLost(Exception):
    """A process was lost over an order, by itself or because it was silent for too long; says how."""


class NotInMemory(Exception):
    """What a name means, or which versions a recipe made, is not in memory: the registry is asked, then looked again.

    Attributes:
        name: that is asked for, or nothing.
        recipe: the digest of the recipe, where it is not a name.
    """

    def __init__(self, name: str, recipe: str) -> None:
        super().__init__(name or recipe)
        self.name = name
        self.recipe = recipe
