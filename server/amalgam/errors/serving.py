"""Errors of how a server is started: flags, certificates, adapters that are named on the command line."""

from amalgam.errors import AmalgamError


class FlagRefused(AmalgamError):
    """A flag of vLLM's own server, behind ``--``, has no effect here, or a value that is not allowed.

    Next step: do what the message says instead, or leave the flag out.
    """

    code = "flag_refused"

    def __init__(self, flag: str, instead: str) -> None:
        super().__init__(f"{flag} after -- has no effect here: {instead}.")


class FlagInvalid(AmalgamError):
    """What is given behind ``--`` cannot be read, or vLLM cannot take it together with the rest.

    Next step: mend what the message names; the help of `vllm serve` lists all flags with their values.
    """

    code = "flag_invalid"

    def __init__(self, reason: str) -> None:
        super().__init__(f"vLLM cannot take what is after --: {reason}. 'vllm serve --help=all' lists its flags.")


class LoraModuleUnusable(AmalgamError):
    """An adapter of ``--lora-modules`` cannot be registered.

    Next step: give ``name=folder`` or ``name=hub/id``, each name once.
    """

    code = "lora_module_unusable"

    def __init__(self, name: str, reason: str) -> None:
        shown = name if len(name) <= 128 else name[:128] + "…"
        super().__init__(
            f"The adapter {shown!r} of --lora-modules cannot be registered: {reason}. Give name=folder of an adapter "
            "in PEFT's layout, or name=hub/id with AMALGAM_HUB_SOURCES=true."
        )


class TlsUnusable(AmalgamError):
    """A certificate or key is there that no connection could be made with.

    Next step: give both in PEM, the key without a passphrase, or neither.
    """

    code = "tls_unusable"

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"TLS cannot be used: {reason}. Give AMALGAM_SSL_CERTFILE and AMALGAM_SSL_KEYFILE, both in PEM and the key "
            "without a passphrase, or neither for plain HTTP."
        )
