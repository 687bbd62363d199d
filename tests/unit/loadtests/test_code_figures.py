"""What is counted of a checkout."""

from pathlib import Path

from loadtests.code_figures import bodies, figures, imports_between, in_circles

FILES = {
    "server/amalgam/__init__.py": "",
    "server/amalgam/app.py": "import os\n\nfrom amalgam.api.pages import page\nfrom amalgam import errors\n",
    "server/amalgam/api/__init__.py": "",
    "server/amalgam/api/pages.py": "def page() -> None:\n    import amalgam.errors\n    import amalgam.api.state\n",
    "server/amalgam/api/state.py": "",
    "server/amalgam/errors.py": "",
    "tests/test_app.py": "\n\n",
    "README.md": "one\ntwo\n",
}


def checkout(folder: Path) -> Path:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_imports_are_counted_between_packages_wherever_they_stand(tmp_path: Path) -> None:
    found = imports_between(checkout(tmp_path) / "server")
    assert found == {"app": {"api", "errors"}, "api": {"errors"}}
    assert figures(tmp_path)["packages that import another, in all"] == "3"


def test_a_circle_is_found_whatever_its_length() -> None:
    assert in_circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]
    assert in_circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_a_body_is_counted_without_signature_and_docstring(tmp_path: Path) -> None:
    path = tmp_path / "one.py"
    path.write_text('def one(\n    a: int,\n) -> int:\n    """Says.\n\n    More.\n    """\n    b = a\n    return b\n')
    assert list(bodies([path])) == [2]


def test_files_and_lines_are_counted(tmp_path: Path) -> None:
    found = figures(checkout(tmp_path))
    assert (found["files, lines"], found["README: lines, bytes"]) == ("6, 7", "2, 8")
    assert (found["packages in circles"], found["tests: files, lines"]) == ("none", "1, 2")
