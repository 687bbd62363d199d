"""Errors of adapter folders, names, versions and sources."""

from collections.abc import Sequence
from typing import Final

from amalgam.errors import Conflict, InvalidRequest, NotFound, Unavailable
from amalgam.errors.findings import Finding


class InvalidAdapter(InvalidRequest):
    """An adapter that must not reach the engine; carries every finding, the first of which names the ``code``."""

    status = 422
    type = "invalid_adapter"
    param = "files"

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        self.code = self.findings[0].code
        lines = " ".join(finding.message for finding in self.findings)
        super().__init__(f"The adapter was refused: {lines}")


class InvalidSafetensors(InvalidRequest):
    """A safetensors file whose header does not add up; no tensor of it was read.

    Next step: save it again as safetensors.
    """

    status = 422
    code = "invalid_header"
    param = "files"

    def __init__(self, file: str, reason: str, instead: str | None = None) -> None:
        """``instead``: what the file is in truth, with the next step, where that can be told."""
        self.reason = reason
        unread = f"has no valid safetensors header: {reason}. Save it again with safetensors"
        super().__init__(f"{file} {instead or unread}.")


class BaseModelUnreadable(InvalidRequest):
    """A model folder whose config or weight files do not tell its shapes.

    Next step: ``amalgam doctor FOLDER`` says what is wrong.
    """

    status = 500
    code = "base_model_unreadable"
    type = "server_error"

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The base model cannot be read: {reason}. `amalgam doctor` checks the model folder.")


class PathDenied(InvalidRequest):
    """A source outside ``AMALGAM_SOURCE_ROOTS``, a link out of them, or odd characters; a file name with folders.

    Next step: put the folder below a root.
    """

    status = 403
    code = "path_denied"
    param = "source"

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The source was refused: {reason}. Put the adapter below a folder named in AMALGAM_SOURCE_ROOTS."
        )


class SourceNotFound(NotFound):
    """A source that is allowed but holds nothing.

    Next step: check the path.
    """

    code = "source_not_found"
    param = "source"

    def __init__(self) -> None:
        super().__init__("The source holds no adapter folder. Check the path and send the request again.")


class ObjectsDenied(InvalidRequest):
    """A source in an object store outside ``AMALGAM_OBJECT_SOURCES``, or one that is no adapter's own address.

    Next step: put the adapter below a prefix that is configured, and name its own folder.
    """

    status = 403
    code = "objects_denied"
    param = "source"

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The source was refused: {reason}. Name the adapter's own folder below a prefix of AMALGAM_OBJECT_SOURCES."
        )


class SourceUnavailable(Unavailable):
    """A hub or an object store that did not answer, or not with what was asked for; nothing was registered.

    Next step: repeat, or fetch it and upload its folder.
    """

    code = "source_unavailable"
    param = "source"
    retry_after_s = 10.0

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The source did not give the adapter ({reason}). Try again, or fetch it and upload its folder."
        )


class UnsupportedSource(InvalidRequest):
    """A source scheme this server does not read.

    Next step: upload the files, or use one that the message lists.
    """

    code = "unsupported_source"
    param = "source"

    def __init__(self, scheme: str, schemes: Sequence[str] = ("file",)) -> None:
        super().__init__(f"Sources of scheme {scheme!r} are not supported here; use one of: {', '.join(schemes)}.")


class UploadTooLarge(InvalidRequest):
    """An upload of more than ``AMALGAM_MAX_UPLOAD_BYTES``.

    Next step: shrink the adapter, or raise the limit.
    """

    status = 413
    code = "upload_too_large"
    param = "files"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"The upload is larger than {limit_bytes} bytes. Shrink the adapter or raise AMALGAM_MAX_UPLOAD_BYTES."
        )


NAME_STEP: Final = "Use 1-128 characters of A-Z a-z 0-9 . _ - and begin with a letter or digit."
HUB_STEP: Final = "A hub's org/name is a source, hf://org/name, and no name; register it as org-name."


class InvalidName(InvalidRequest):
    """A name outside the grammar of adapter names.

    Next step: use 1-128 of ``A-Z a-z 0-9 . _ -``, a letter or digit first.
    """

    code = "invalid_name"
    param = "name"

    def __init__(self, name: str) -> None:
        shown = name if len(name) <= 64 else name[:64] + "…"
        step = f"{NAME_STEP} {HUB_STEP}" if "/" in name else NAME_STEP
        super().__init__(f"{shown!r} is not an adapter name. {step}")


class NameReserved(Conflict):
    """A name that the server needs for itself, such as the base model's.

    Next step: choose another.
    """

    code = "name_reserved"
    param = "name"

    def __init__(self, name: str) -> None:
        super().__init__(f"The name {name!r} is reserved for the base model. Choose another name.")


class NameTaken(Conflict):
    """A name that an adapter, an alias or an export has already, or any that exists where ``if_absent`` was sent.

    Next step: choose another; the message says what else helps.
    """

    code = "name_taken"
    param = "name"

    def __init__(self, name: str, step: str = "leave out if_absent to add a version") -> None:
        super().__init__(f"The name {name!r} is taken. Choose another name, or {step}.")

    @classmethod
    def by_alias(cls, name: str) -> "NameTaken":
        """An alias has the name."""
        return cls(name, "delete the alias of that name first")

    @classmethod
    def by_adapter(cls, name: str) -> "NameTaken":
        """An adapter has the name, or a merge that is not finished will give it to one."""
        return cls(name, "delete the adapter of that name, or cancel the merge that makes it, first")


class AdapterNotFound(NotFound):
    """No adapter of that name, here or in a recipe.

    Next step: ``GET /admin/v1/adapters`` lists what there is.
    """

    code = "adapter_not_found"
    param = "name"

    def __init__(self, name: str, near: Sequence[str] = ()) -> None:
        hint = f" Near names: {', '.join(near)}." if near else " GET /admin/v1/adapters lists what there is."
        super().__init__(f"No adapter is named {name!r}.{hint}")


class VersionNotFound(NotFound):
    """An adapter of that name exists, but not that version.

    Next step: the message lists those it has.
    """

    code = "version_not_found"
    param = "version"

    def __init__(self, name: str, number: int, known: Sequence[int] = ()) -> None:
        have = ", ".join(str(n) for n in known) or "none"
        super().__init__(f"{name!r} has no version {number}; it has: {have}.")


class DefaultVersionInUse(Conflict):
    """The default version was to be deleted while the adapter has others that could take its place.

    Next step: move the default, or delete the adapter.
    """

    code = "default_version_in_use"
    param = "version"

    def __init__(self, name: str, number: int) -> None:
        super().__init__(
            f"{name}@{number} is the default version of {name!r}. "
            f"Make another version the default first, or delete {name!r}."
        )


class ArtifactDamaged(InvalidRequest):
    """Stored bytes that no longer match their digest.

    Next step: upload the adapter again.
    """

    status = 500
    code = "artifact_damaged"
    type = "server_error"

    def __init__(self, digest: str) -> None:
        super().__init__(
            f"The stored adapter {digest[:12]} does not match its digest, and is not served. Upload it again, or put "
            "its files back, and ask POST /admin/v1/adapters/{name}:verify."
        )
