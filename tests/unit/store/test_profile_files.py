"""What trainers leave beside an adapter becomes a profile; what cannot be read costs a warning and nothing else."""

import json
from typing import Any

import pytest

from amalgam.domain.failpoints import NO_FAILPOINTS
from amalgam.domain.serving_profile import MAX_TEMPLATE, ServingProfile
from amalgam.store.profile_files import MAX_PROFILE_FILE_BYTES, PROFILE_FILES, read_profile
from amalgam.store.staging import Staging


def files(**said: Any) -> dict[str, bytes]:
    names = {
        "own": "serving_profile.json",
        "tokenizer": "tokenizer_config.json",
        "generation": "generation_config.json",
    }
    return {names[key]: json.dumps(value).encode() for key, value in said.items()}


def test_every_file_says_its_part_and_the_earlier_one_holds() -> None:
    given = files(
        own={"system_prompt": "Be brief.", "sampling": {"temperature": 0.5}, "stop": ["X"]},
        tokenizer={"chat_template": "of the tokenizer"},
        generation={"temperature": 0.9, "top_k": 5, "max_new_tokens": 7, "transformers_version": "5"},
    )
    profile, findings = read_profile(given)
    assert findings == []
    assert profile == ServingProfile.model_validate(
        {
            "chat_template": "of the tokenizer",
            "system_prompt": "Be brief.",
            "sampling": {"temperature": 0.5, "top_k": 5, "max_tokens": 7},
            "stop": ["X"],
        }
    )
    profile, _ = read_profile(given | {"chat_template.jinja": b"of its own file"})
    assert profile is not None
    assert profile.chat_template == "of its own file"


def test_of_several_templates_the_default_one_counts_and_a_config_that_does_not_sample_is_greedy() -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    profile, _ = read_profile(files(tokenizer={"chat_template": named}, generation={"do_sample": False, "top_p": 0.9}))
    assert profile is not None
    assert profile.chat_template == "d"
    assert profile.sampling.given() == {"temperature": 0.0}


@pytest.mark.parametrize(
    "given",
    [
        {},
        files(tokenizer={}, generation={}),
        files(tokenizer={"chat_template": None}, generation={"eos_token_id": 2}),
        files(tokenizer=[], generation=3),
        files(tokenizer={"chat_template": [{"name": "rag", "template": "x"}]}),
        {"chat_template.jinja": b"\n"},
    ],
)
def test_files_that_say_nothing_of_it_make_no_profile(given: dict[str, bytes]) -> None:
    assert read_profile(given) == (None, [])


@pytest.mark.parametrize(
    "given",
    [
        files(own={"system_prompt": 1}),
        files(own={"unknown": 1}),
        files(own={"sampling": {"temperature": 3}}),
        files(own={"stop": [""]}),
        files(own={"system_prompt": "a\x00b"}),
        files(generation={"temperature": "hot"}),
        files(generation={"top_p": 7}),
        files(tokenizer={"chat_template": "x" * (MAX_TEMPLATE + 1)}),
        files(tokenizer={"chat_template": 5}),
        {"chat_template.jinja": b"\xff"},
        {"chat_template.jinja": b"a\x00"},
        {"serving_profile.json": b"{"},
        {"serving_profile.json": b"[" * 100_000},
        {"serving_profile.json": b'{"sampling": {"temperature": NaN}}'},
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_the_others_count(given: dict[str, bytes]) -> None:
    other = {"serving_profile.json": b'{"system_prompt": "kept"}'} if "serving_profile.json" not in given else {}
    profile, [finding] = read_profile(given | other)
    assert (profile is not None) == bool(other)
    assert (finding.code, finding.severity) == ("profile_ignored", "warning")
    assert next(iter(given)) in finding.message
    assert len(finding.message) < 500


def test_staging_keeps_these_files_beside_the_adapter_and_none_that_is_too_long(tmp_path: Any) -> None:
    staging = Staging(tmp_path, max_bytes=None, failpoints=NO_FAILPOINTS)
    for name in PROFILE_FILES[:3]:
        staging.receive(name, [b"{", b"}"])
    staging.receive(PROFILE_FILES[3], [b"x" * (MAX_PROFILE_FILE_BYTES + 1)])
    assert staging.profile_files == dict.fromkeys(PROFILE_FILES[:3], b"{}")
    assert list(tmp_path.iterdir()) == []
    assert staging.left_out == PROFILE_FILES
