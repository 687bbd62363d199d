import pytest

from amalgam.domain.adapter import MAX_VERSION, VersionRef
from amalgam.domain.blend import blend_name, is_blend_name

DIGEST = "1f0c9a2b77d1" + "0" * 52


def test_a_blend_is_named_by_the_first_digits_of_its_digest() -> None:
    assert blend_name(DIGEST) == "blend@1f0c9a2b77d1"
    assert blend_name(DIGEST, 64) == f"blend@{DIGEST}"
    assert is_blend_name(blend_name(DIGEST))
    assert is_blend_name(blend_name(DIGEST, 64))


@pytest.mark.parametrize(
    "text",
    ["blend@1f0c", "blend", f"blend@{MAX_VERSION}", "blend@1F0C9A2B77D1", "a blend@1f0c9a2b77d1", "blend@12345678901g"],
)
def test_nothing_else_is_a_blends_name(text: str) -> None:
    assert not is_blend_name(text)


def test_no_version_can_have_a_blends_name() -> None:
    assert VersionRef.parse(f"blend@{MAX_VERSION}") is not None
    assert VersionRef.parse(blend_name("1" * 64)) is None
