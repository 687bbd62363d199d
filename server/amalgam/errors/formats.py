"""Errors of adapter files that PEFT did not write: llama.cpp's, mlx-lm's, those of diffusion models."""

from amalgam.errors import InvalidRequest


class InvalidGguf(InvalidRequest):
    """A GGUF file whose header does not add up; no tensor of it was read.

    Next step: convert or download it again.
    """

    status = 422
    code = "invalid_gguf"
    param = "inputs"

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file} is no valid GGUF file: {reason}. Convert or download it again.")


class UnsupportedTarget(InvalidRequest):
    """An adapter that the asked form of file cannot hold, such as a module that llama.cpp has no name for.

    Next step: write it in PEFT's form.
    """

    status = 422
    code = "unsupported_target"
    param = "format"

    def __init__(self, form: str, reason: str, step: str = "Write it with --format peft.") -> None:
        super().__init__(f"It cannot be written as {form}: {reason}. {step}")
