"""All errors are in one tree, in one package; none of them is changed while it is on its way."""

import ast
import builtins
import copy
from collections.abc import Iterator
from pathlib import Path

import pytest

import amalgam.errors
from amalgam.errors import AmalgamError
from amalgam.errors.adapters import AdapterNotFound
from amalgam.errors.aliases import PreconditionFailed, StaleRevision
from amalgam.errors.blends import UnknownBlendInput
from amalgam.errors.overload import KeyOverShare
from amalgam.errors.registry import RegistryUnavailable
from amalgam.errors.reported import ReportedError

SERVER = Path(amalgam.errors.__file__).parents[2]
ERRORS = Path(amalgam.errors.__file__).parent


def trees(*, errors: bool) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SERVER.rglob("*.py")):
        if (ERRORS in path.parents) is errors:
            yield str(path.relative_to(SERVER)), ast.parse(path.read_text())


def classes(tree: ast.Module) -> Iterator[tuple[str, set[str]]]:
    """Every class and the names of its bases."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield node.name, {ast.unparse(base).rpartition(".")[2] for base in node.bases}


def test_every_error_class_of_the_server_is_in_the_package_of_errors() -> None:
    exceptions = {
        name for name, one in vars(builtins).items() if isinstance(one, type) and issubclass(one, BaseException)
    }
    exceptions |= {"HTTPException", "VLLMError", "StarletteHTTPException"}
    for _, tree in trees(errors=True):
        exceptions |= {name for name, _ in classes(tree)}
    found = [
        f"{path}: {name}" for path, tree in trees(errors=False) for name, bases in classes(tree) if bases & exceptions
    ]
    assert found == []


def test_no_error_is_changed_while_it_is_on_its_way() -> None:
    """`at` and `saying` make another; whoever else holds the first one still reads what it said."""
    found = []
    for path, tree in trees(errors=False):
        caught = {node.name for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name} | {"error"}
        for node in ast.walk(tree):
            targets = node.targets if isinstance(node, ast.Assign) else []
            found += [
                f"{path}:{target.lineno}"
                for target in targets
                if isinstance(target, ast.Attribute)
                and isinstance(target.value, ast.Name)
                and target.value.id in caught
            ]
    assert found == []


SAMPLES: list[AmalgamError] = [
    AdapterNotFound("sqll", ["sql"]),
    UnknownBlendInput("sqll", 3),
    ReportedError("no", code="rank_too_large", status=503),
    KeyOverShare(3, 2.5),
    StaleRevision("a", 1, 2),
]


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_at_another_field_is_a_copy(error: AmalgamError) -> None:
    before, message = dict(vars(error)), error.message
    other = error.at("targets.0.model").saying("Else.")
    assert type(other) is type(error)
    assert (other.param, other.message, str(other)) == ("targets.0.model", "Else.", "Else.")
    assert (other.code, other.status, other.retry_after_s) == (error.code, error.status, error.retry_after_s)
    assert vars(error) == before
    assert str(error) == message
    assert isinstance(copy.copy(error.args), tuple)


def test_what_comes_from_another_process_keeps_its_own_code() -> None:
    error = ReportedError("x", code="rank_too_large", status=400)
    assert (error.code, error.status, error.type) == ("rank_too_large", 400, "invalid_request_error")
    assert (ReportedError.code, ReportedError.status) == ("internal_error", 500)


def test_other_words_are_those_that_are_told() -> None:
    error = RegistryUnavailable.in_doubt("lost")
    assert "may have recorded it" in str(error)
    assert PreconditionFailed("a", 1, 2).status == 412
