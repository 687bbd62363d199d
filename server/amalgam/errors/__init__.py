"""The error tree. Callers match on the class or on ``code``, never on the text.

Every class builds its own message from the values that explain it and ends with the next step.
``status`` is the HTTP status that `amalgam.api` answers with; nothing below `api` knows more of HTTP than that number.

    AmalgamError
    ├── errors.requests     what a caller sent: keys, fields, model names, limits
    ├── errors.http         who may ask, from where, by which routes, and in what form
    ├── errors.tenants      tenants and keys: who there is, what has ended, what is out of scope
    ├── errors.adapters     adapter folders, names, versions, sources
    ├── errors.aliases      aliases, their revisions and targets
    ├── errors.profiles     serving profiles, and chat templates that fail
    ├── errors.merging      expressions, recipes, plans
    ├── errors.fits         searches for the weights of a merge
    ├── errors.formats      files of llama.cpp, mlx-lm and diffusion models, read and written
    ├── errors.skills       what a merge keeps of its inputs
    ├── errors.merge_run    a merge while it is computed: devices, kernels, memory
    ├── errors.overload     more than the server can do: a key's share, the whole server, a deadline
    ├── errors.limits       beyond a limit of a key or its tenant: rates, budgets, one request alone
    ├── errors.blends       expressions in the ``model`` field: limits, the blend process
    ├── errors.learning     feedback of clients, and experiments on aliases
    ├── errors.evaluations  evaluations and sweeps
    ├── errors.batches      stored files, and batches of requests
    ├── errors.jobs         jobs and their leases
    ├── errors.exports      checkpoints made of the base model and an adapter
    ├── errors.reported     what another process met, under its own code
    ├── errors.registry     the registry's database and the store's disk
    ├── errors.settings     variables of the environment, and the file of settings
    ├── errors.serving      how a server is started: flags, certificates
    ├── errors.terminal     the command line: words, files, servers that do not answer
    ├── errors.engine       the engine: not ready, failed to load, gone
    ├── errors.remote       engines in processes of their own: no Ray, nobody there, another model
    ├── errors.cpu_lora     LoRA on CPU beside a release of vLLM that it was not tested with
    ├── errors.demo         the demo model, its tasks and its scoring
    └── errors.shutdown     a server that stops

Besides these: ``errors.findings`` is what a check reports, ``errors.code_table`` describes codes without a class, and
``errors.internal`` has what is caught on its way and never answered.
"""

from typing import Self


class AmalgamError(Exception):
    """Root of the tree.

    Attributes:
        status: HTTP status, a plain integer.
        code: Stable machine-readable name, documented in ``docs/errors.md``.
        type: OpenAI's error family.
        param: The request field at fault, or None.
        retry_after_s: Seconds after which a retry may succeed, or None where a retry cannot help.
    """

    status: int = 500
    code: str = "internal_error"
    type: str = "server_error"
    param: str | None = None
    retry_after_s: float | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if param is not None:
            self.param = param

    def __str__(self) -> str:
        return self.message

    def at(self, param: str) -> Self:
        """The same error at another field of the request; this one stays as it is, whoever else holds it."""
        other = self._copied()
        other.param = param
        return other

    def saying(self, message: str) -> Self:
        """The same error in other words; this one stays as it is."""
        other = self._copied()
        other.message = message
        return other

    def _copied(self) -> Self:
        # The constructors of classes take the values that explain them, which `copy.copy` does not know.
        other = type(self).__new__(type(self), *self.args)
        other.__dict__.update(self.__dict__)
        return other


class InvalidRequest(AmalgamError):
    """A request that is malformed, or that the engine's handler refuses; sent again unchanged it cannot succeed.

    Next step: read the message; mend the field in ``param``.
    """

    status = 400
    code = "invalid_request"
    type = "invalid_request_error"


class NotFound(AmalgamError):
    """Something named in the request does not exist.

    Next step: check the name.
    """

    status = 404
    code = "not_found"
    type = "invalid_request_error"


class Conflict(AmalgamError):
    """The request contradicts what is already stored; retrying unchanged cannot help.

    Next step: look at what is there; do not repeat it.
    """

    status = 409
    code = "conflict"
    type = "invalid_request_error"


class Unavailable(AmalgamError):
    """The server cannot do this now; the same request may succeed later.

    Next step: repeat after ``Retry-After``.
    """

    status = 503
    code = "unavailable"
    type = "server_error"
    retry_after_s = 1.0
