"""What an adapter's folder says of how it wants to be asked, read into a serving profile.

Trainers leave the tokenizer's files and a generation config beside an adapter. They are no part of it and are not
stored; what they say of prompts and sampling is. A file that cannot be read so is worth a warning and never a refusal.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from amalgam.domain.serving_profile import SamplingDefaults, ServingProfile
from amalgam.errors.findings import Finding
from amalgam.errors.type_words import told

OWN_FILE: Final = "serving_profile.json"
TEMPLATE_FILE: Final = "chat_template.jinja"
TOKENIZER_FILE: Final = "tokenizer_config.json"
GENERATION_FILE: Final = "generation_config.json"
PROFILE_FILES: Final = (OWN_FILE, TEMPLATE_FILE, TOKENIZER_FILE, GENERATION_FILE)
"""They are in order: what an earlier one says holds against the later ones."""
MAX_PROFILE_FILE_BYTES: Final = 4 << 20
"""Of a longer one nothing is read."""

_GENERATION: Final = {
    **{name: name for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")},
    "max_new_tokens": "max_tokens",
}
_DEFAULT_TEMPLATE: Final = "default"


def read_profile(files: Mapping[str, bytes]) -> tuple[ServingProfile | None, list[Finding]]:
    """The profile that the files of a folder come to, and what is to be said about them.

    Args:
        files: Name, one of `PROFILE_FILES`, -> its bytes.

    Returns: None where they say nothing of it.
    """
    said: dict[str, Any] = {}
    findings: list[Finding] = []
    for name in PROFILE_FILES:
        if name not in files:
            continue
        try:
            part = _READERS[name](files[name])
            # Judged by itself, so that one bad file does not take the others along.
            if part:
                ServingProfile.model_validate(part)
        except (ValueError, RecursionError) as error:
            findings.append(_ignored(name, error))
            continue
        sampling = {**part.pop("sampling", {}), **said.get("sampling", {})}
        said = part | said | ({"sampling": sampling} if sampling else {})
    return (ServingProfile.model_validate(said) if said else None), findings


def _own(data: bytes) -> dict[str, Any]:
    found = json.loads(data)
    ServingProfile.model_validate(found)
    return dict(found)


def _template(data: bytes) -> dict[str, Any]:
    text = data.decode()
    return {"chat_template": text} if text.strip() else {}


def _tokenizer(data: bytes) -> dict[str, Any]:
    """A template, or several by name, of which the default one counts."""
    found = json.loads(data)
    template = found.get("chat_template") if isinstance(found, dict) else None
    if isinstance(template, list):
        named = [one for one in template if isinstance(one, dict) and one.get("name") == _DEFAULT_TEMPLATE]
        template = named[0].get("template") if named else None
    return {"chat_template": template} if template else {}


def _generation(data: bytes) -> dict[str, Any]:
    """What has a meaning for a request; a config that does not sample asks for the likeliest token."""
    found = json.loads(data)
    if not isinstance(found, dict):
        return {}
    sampling = {ours: found[theirs] for theirs, ours in _GENERATION.items() if found.get(theirs) is not None}
    if found.get("do_sample") is False:
        sampling = {name: value for name, value in sampling.items() if name in ("repetition_penalty", "max_tokens")}
        sampling["temperature"] = 0.0
    return {"sampling": SamplingDefaults.model_validate(sampling).given()} if sampling else {}


_READERS: Final = {OWN_FILE: _own, TEMPLATE_FILE: _template, TOKENIZER_FILE: _tokenizer, GENERATION_FILE: _generation}


def _ignored(name: str, error: Exception) -> Finding:
    reason = "is not what such a file holds"
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        reason = f"{place}: {told(first)}" if place else told(first)
    message = f"{name} was not taken into the serving profile: {reason}. Mend it, or put the profile by the API."
    return Finding(code="profile_ignored", severity="warning", message=message)
