"""What the commands that work on adapter folders share: their recipes, their inputs, and how they end."""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, get_args

import typer
from pydantic import ValidationError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from amalgam.cli.consoles import on_stderr
from amalgam.cli.foreign_inputs import open_foreign
from amalgam.cli.one_line import ended_with
from amalgam.domain.expression import parse_expression
from amalgam.domain.recipe import Output, Recipe
from amalgam.errors import AmalgamError
from amalgam.errors.adapters import InvalidAdapter
from amalgam.errors.requests import FieldRefused
from amalgam.errors.type_words import told
from amalgam.settings import Settings
from amalgam.settings.groups import EngineSettings

if TYPE_CHECKING:
    from amalgam.merge.build import BuildOptions
    from amalgam.merge.sources import TensorSource

DTYPES: Final = get_args(Output.model_fields["dtype"].annotation)
"""A result may be stored in these."""
DEFAULT_MAX_RANK: Final = EngineSettings().max_lora_rank
"""It is the largest rank of a result unless ``--max-rank`` says otherwise: what a server allows unless it is told
otherwise."""

_UNITS: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}

Expression = Annotated[
    str,
    typer.Argument(
        help="such as 'ties(./a, 0.5*./b; density=0.5)', or a recipe file (.json); inputs are folders or files"
    ),
]
Rank = Annotated[str | None, typer.Option(help="auto, a number, or energy=0.95")]
Dtype = Annotated[str | None, typer.Option(help=", ".join(DTYPES))]
Seed = Annotated[int | None, typer.Option(help="of the random methods")]
MaxRank = Annotated[int, typer.Option(min=1, help="largest rank that serving allows (AMALGAM_MAX_LORA_RANK)")]
UniformRank = Annotated[bool, typer.Option("--uniform-rank", help="pad all modules to one rank, for llama.cpp")]
Device = Annotated[str, typer.Option(help="cpu, cuda:0, …")]
Backend = Annotated[str, typer.Option(help="auto, reference, cpu or triton")]
Workspace = Annotated[str, typer.Option(help="bound on working memory, such as 512MiB or 1GiB")]
Base = Annotated[Path | None, typer.Option(help="folder of the base model; VeRA and DoRA need it", file_okay=False)]
Mismatch = Annotated[bool, typer.Option("--allow-base-mismatch", help="merge adapters of different base models")]


def recipe_of(
    expression: str,
    rank: str | None,
    dtype: str | None,
    seed: int | None,
    mismatch: bool,
    uniform_rank: bool = False,
) -> Recipe:
    """The recipe of an expression or a file, with the options on top.

    Raises:
        InvalidExpression, FieldRefused: what is written there, or in the file, is none.
    """
    recipe = (
        recipe_file(Path(expression))
        if expression.endswith(".json")
        else parse_expression(expression, allow_paths=True)
    )
    fields = recipe.model_dump()
    if uniform_rank:
        fields["output"]["uniform_rank"] = True
    if rank is not None:
        fields["output"]["rank"] = _rank(rank)
    if dtype is not None:
        if dtype not in DTYPES:
            raise FieldRefused("dtype", f"{dtype!r} is not stored. Give one of: {', '.join(DTYPES)}")
        fields["output"]["dtype"] = dtype
    if seed is not None:
        fields["seed"] = seed
    fields["allow_base_mismatch"] = mismatch or recipe.allow_base_mismatch
    return _validated(fields)


def recipe_file(path: Path) -> Recipe:
    """The recipe of a file of JSON. Raises FieldRefused where it is none."""
    try:
        fields = json.loads(path.read_bytes())
    except OSError as error:
        raise FieldRefused("recipe", f"{str(path)!r} cannot be read ({error.strerror}). Check the path") from None
    except (ValueError, RecursionError):
        raise FieldRefused("recipe", f"{str(path)!r} is not JSON. Write the recipe as JSON in UTF-8") from None
    return _validated(fields)


def _validated(fields: Any) -> Recipe:
    """A recipe; what is wrong with it is said by the name of the field."""
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        raise _refused(error, "recipe") from None


def _refused(error: ValidationError, whole: str) -> FieldRefused:
    """The first thing that is wrong, by the name of its field."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if str(part).isidentifier()) or whole
    text = told(first)
    return FieldRefused(place, f"is refused: {text[:1].lower()}{text[1:]}. Give another value")


def _rank(text: str) -> str | int | dict[str, float]:
    wrong = FieldRefused("rank", f"{text!r} is no rank. Give auto, a number from 1 to 512, or energy=0.95")
    try:
        rank: str | int | dict[str, float] = text
        if text.startswith("energy="):
            rank = {"energy": float(text.removeprefix("energy="))}
        elif text != "auto":
            rank = int(text)
        Output.model_validate({"rank": rank})
    except ValueError:
        raise wrong from None
    return rank


def open_inputs(
    recipe: Recipe, base: Path | None = None, *, dora_rank: int | None = DEFAULT_MAX_RANK
) -> "dict[str, TensorSource]":
    """Every adapter of the recipe: plain LoRA checked and mapped, other kinds converted.

    Args:
        recipe: Its adapters are folders, or files of llama.cpp or of diffusion models.
        base: Folder of the base model, for kinds whose files do not tell the sizes of their modules or their deltas.
        dora_rank: Of what is kept of a DoRA adapter's delta, which has full rank; None keeps all of it.
    """
    from amalgam.merge.formats import convert, is_plain
    from amalgam.store.base_model import base_spec
    from amalgam.store.module_names import renaming_of
    from amalgam.store.tensor_files import CONFIG, read_all

    opened: dict[str, TensorSource] = {}
    for name in recipe.adapters:
        folder = Path(name).expanduser()
        config = folder / CONFIG
        foreign = open_foreign(name, folder, base)
        if foreign is not None:
            opened[name] = foreign
        elif config.is_file() and not is_plain(config.read_text(encoding="utf-8", errors="replace")):
            shapes = None if base is None else base_spec(base, base.name, max_lora_rank=1).linear_shapes
            opened[name] = convert(name, *read_all(folder, renaming_of(base)), shapes)
        else:
            opened[name] = _open_lora(name, folder, base, dora_rank)
    return opened


def _open_lora(name: str, folder: Path, base: Path | None, dora_rank: int | None) -> "TensorSource":
    """LoRA; where it started as a part of the base weights, less that start, which its folder ``initial`` holds."""
    from amalgam.cli.separated_inputs import separated
    from amalgam.merge.formats import subtract_initial
    from amalgam.store.module_names import renaming_of
    from amalgam.store.peft_folder import read_peft_folder
    from amalgam.store.tensor_files import open_tensors, read_all

    with separated(folder, base) as apart:
        if apart is not None:
            # Its files are mapped, and stay so when their names are gone.
            return _open_lora(name, apart, base, dora_rank)
    checked = read_peft_folder(folder, None, scan_values=False, base_folder=base)
    print_warnings(tuple(f"{name}: {finding.message}" for finding in checked.warnings))
    initial, codes = folder / "initial", {error.code for error in checked.errors}
    if base is not None and codes == {"unsupported_dora"}:
        return _open_dora(name, folder, base, dora_rank)
    if checked.header is None or codes != {"unsupported_init"} or not initial.is_dir():
        return open_tensors(folder, checked.require(), rename=renaming_of(base))
    config, tensors, digest = read_all(folder, renaming_of(base))
    _, start, start_digest = read_all(initial, renaming_of(base))
    both = hashlib.sha256(f"{digest} {start_digest}".encode()).hexdigest()
    return subtract_initial(name, (checked.header, config, tensors, both), start)


def _open_dora(name: str, folder: Path, base: Path, rank: int | None) -> "TensorSource":
    """DoRA, cut to a rank where there is one; how much of what it changes that holds is said."""
    from amalgam.merge.dora import convert_dora
    from amalgam.store.base_weights import BaseWeights
    from amalgam.store.module_names import renaming_of
    from amalgam.store.peft_config import read_rules
    from amalgam.store.tensor_files import read_all

    stored = read_all(folder, renaming_of(base))
    rules, findings = read_rules({**stored[0], "use_dora": False})
    if rules is None or findings:
        raise InvalidAdapter(findings)
    found, share = convert_dora(name, stored, rules.scaling_of, BaseWeights(base).of, rank)
    if rank is None:
        return found
    text = f"{name} was trained with DoRA; rank {found.header.rank} holds {share:.4f} of the energy of its delta"
    print_warnings((text,))
    return found


def build_options(
    sources: "Mapping[str, TensorSource]",
    max_rank: int,
    device: str,
    backend: str,
    workspace: str,
    base: Path | None,
) -> "BuildOptions":
    """Bounds and circumstances, as the options have them."""
    from amalgam.merge.build import BuildOptions
    from amalgam.merge.run import RunOptions
    from amalgam.store.base_norms import delta_bound

    # Where the model is not given, its name is all there is: folders and capital letters do not count.
    bases = {name: (source.header.base_model or "").rstrip("/").rpartition("/")[2].lower() or None
             for name, source in sources.items()}  # fmt: skip
    run = RunOptions(device=device, backend=backend, max_workspace_bytes=size_bytes(workspace))
    bound = delta_bound(base, Settings().adapters.max_delta_ratio)
    return BuildOptions(max_rank=max_rank, run=run, bases=bases, delta_bound=bound)


def size_bytes(text: str) -> int:
    """``512MiB``, ``1GiB`` or a number, in bytes."""
    number, unit = next(((text.removesuffix(u), size) for u, size in _UNITS.items() if text.endswith(u)), (text, 1))
    try:
        return int(float(number) * unit)
    except (ValueError, OverflowError):
        raise FieldRefused("size", f"{text!r} is no size. Write it as 512MiB, 1GiB or a number of bytes") from None


def require_writable(folder: Path) -> None:
    """Refuse before hours of merging a result whose folder cannot be made, or not be written; makes nothing.

    Raises:
        FieldRefused: it cannot.
    """
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            return
    except OSError as error:
        raise FieldRefused("out", f"{str(folder)!r} cannot be written ({error.strerror}). Name another place") from None


def progress_bar() -> Progress:
    """A bar on standard error, gone when it is done."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=on_stderr(), transient=True)


def print_warnings(warnings: tuple[str, ...]) -> None:
    """One line each, on standard error."""
    for warning in warnings:
        on_stderr().print(f"warning: {warning}", markup=False, style="yellow", soft_wrap=True)


@contextmanager
def sentences() -> Iterator[None]:
    """Errors of the tree, of fields and of the system end the program with one line, not with a trace."""
    try:
        yield
    except (AmalgamError, ValidationError, UnicodeError, OSError) as error:
        raise ended_with(error) from None
