"""The console's libraries are the files that their table says, with their licences beside them."""

import json

from deploy.vendor_console import LICENCES, TABLE, VENDOR, differences, rewritten


def test_vendored_files_are_those_of_the_table() -> None:
    assert differences() == []


def test_every_package_has_its_licence_there_and_a_permissive_one() -> None:
    texts = LICENCES.read_text()
    for row in json.loads(TABLE.read_text()):
        assert f"{row['package']} {row['version']} ({row['licence']})" in texts
        assert row["licence"] in {"MIT", "Apache-2.0"}


def test_no_module_names_what_a_page_cannot_find() -> None:
    for path in VENDOR.glob("*.js"):
        if path.name != "swagger-ui.js":
            assert rewritten(path.read_text()) == path.read_text()
