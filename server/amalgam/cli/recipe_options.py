"""What the commands that work on adapter folders share: their recipes, their inputs, and how they end."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from amalgam.domain.expression import parse_expression
from amalgam.domain.recipe import Recipe
from amalgam.errors import AmalgamError
from amalgam.errors.adapters import InvalidAdapter
from amalgam.errors.requests import FieldRefused

if TYPE_CHECKING:
    from amalgam.merge.build import BuildOptions
    from amalgam.merge.sources import TensorSource

CONSOLE: Final = Console(highlight=False)
ERRORS: Final = Console(stderr=True, highlight=False)
DORA_RANK: Final = 64
"""What the delta of a DoRA adapter, which has full rank, is held at before it is merged."""

_UNITS: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}

Expression = Annotated[
    str, typer.Argument(help="such as 'ties(./a, 0.5*./b; density=0.5)', or a recipe file (.json); inputs are folders")
]
Rank = Annotated[str | None, typer.Option(help="auto, a number, or energy=0.95")]
Dtype = Annotated[str | None, typer.Option(help="bfloat16, float16 or float32")]
Seed = Annotated[int | None, typer.Option(help="of the random methods")]
MaxRank = Annotated[int, typer.Option(help="largest rank that serving allows")]
Device = Annotated[str, typer.Option(help="cpu, cuda:0, …")]
Backend = Annotated[str, typer.Option(help="auto, reference, cpu or triton")]
Workspace = Annotated[str, typer.Option(help="bound on working memory, such as 512MiB or 1GiB")]
Base = Annotated[Path | None, typer.Option(help="folder of the base model; VeRA and DoRA need it", file_okay=False)]
Mismatch = Annotated[bool, typer.Option("--allow-base-mismatch", help="merge adapters of different base models")]


def recipe_of(expression: str, rank: str | None, dtype: str | None, seed: int | None, mismatch: bool) -> Recipe:
    """The recipe of an expression or a file, with the options on top."""
    if expression.endswith(".json"):
        recipe = Recipe.model_validate_json(Path(expression).read_text(encoding="utf-8"))
    else:
        recipe = parse_expression(expression, allow_paths=True)
    fields = recipe.model_dump()
    if rank is not None:
        fields["output"]["rank"] = _rank(rank)
    if dtype is not None:
        fields["output"]["dtype"] = dtype
    if seed is not None:
        fields["seed"] = seed
    fields["allow_base_mismatch"] = mismatch or recipe.allow_base_mismatch
    return Recipe.model_validate(fields)


def _rank(text: str) -> str | int | dict[str, float]:
    try:
        if text.startswith("energy="):
            return {"energy": float(text.removeprefix("energy="))}
        return text if text == "auto" else int(text)
    except ValueError:
        raise FieldRefused("rank", f"{text!r} is none of: auto, a number, energy=0.95") from None


def open_inputs(recipe: Recipe, base: Path | None = None) -> "dict[str, TensorSource]":
    """Every folder of the recipe: plain LoRA checked and mapped, other kinds converted.

    Args:
        recipe: Its adapters are folders.
        base: Folder of the base model, for kinds whose files do not tell the sizes of their modules or their deltas.
    """
    from amalgam.merge.formats import convert, is_plain
    from amalgam.store.base_model import base_spec
    from amalgam.store.tensor_files import CONFIG, read_all

    opened: dict[str, TensorSource] = {}
    for name in recipe.adapters:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise FieldRefused("inputs", f"{name!r} is no folder. Name the folder of a PEFT adapter")
        config = folder / CONFIG
        if config.is_file() and not is_plain(config.read_text(encoding="utf-8")):
            shapes = None if base is None else base_spec(base, base.name, max_lora_rank=1).linear_shapes
            opened[name] = convert(name, *read_all(folder), shapes)
        else:
            opened[name] = _open_lora(name, folder, base)
    return opened


def _open_lora(name: str, folder: Path, base: Path | None) -> "TensorSource":
    """LoRA; where it started as a part of the base weights, less that start, which its folder ``initial`` holds."""
    from amalgam.merge.formats import subtract_initial
    from amalgam.store.peft_folder import read_peft_folder
    from amalgam.store.tensor_files import open_tensors, read_all

    checked = read_peft_folder(folder, None, scan_values=False)
    initial, codes = folder / "initial", {error.code for error in checked.errors}
    if base is not None and codes == {"unsupported_dora"}:
        return _open_dora(name, folder, base)
    if checked.header is None or codes != {"unsupported_init"} or not initial.is_dir():
        return open_tensors(folder, checked.require())
    config, tensors, digest = read_all(folder)
    _, start, start_digest = read_all(initial)
    both = hashlib.sha256(f"{digest} {start_digest}".encode()).hexdigest()
    return subtract_initial(name, (checked.header, config, tensors, both), start)


def _open_dora(name: str, folder: Path, base: Path) -> "TensorSource":
    """DoRA, cut to ``DORA_RANK``; how much of what it changes that holds is said."""
    from amalgam.merge.dora import convert_dora
    from amalgam.store.base_weights import BaseWeights
    from amalgam.store.peft_config import read_rules
    from amalgam.store.tensor_files import read_all

    stored = read_all(folder)
    rules, findings = read_rules({**stored[0], "use_dora": False})
    if rules is None or findings:
        raise InvalidAdapter(findings)
    found, share = convert_dora(name, stored, rules.scaling_of, BaseWeights(base).of, DORA_RANK)
    text = f"{name} was trained with DoRA; rank {found.header.rank} holds {share:.4f} of the energy of its delta"
    print_warnings((text,))
    return found


def build_options(
    sources: "Mapping[str, TensorSource]", max_rank: int, device: str, backend: str, workspace: str
) -> "BuildOptions":
    """Bounds and circumstances, as the options have them."""
    from amalgam.merge.build import BuildOptions
    from amalgam.merge.run import RunOptions

    # Without a model at hand its name is all there is: folders and capital letters do not count.
    bases = {name: (source.header.base_model or "").rstrip("/").rpartition("/")[2].lower() or None
             for name, source in sources.items()}  # fmt: skip
    run = RunOptions(device=device, backend=backend, max_workspace_bytes=size_bytes(workspace))
    return BuildOptions(max_rank=max_rank, run=run, bases=bases)


def size_bytes(text: str) -> int:
    """``512MiB``, ``1GiB`` or a number, in bytes."""
    number, unit = next(((text.removesuffix(u), size) for u, size in _UNITS.items() if text.endswith(u)), (text, 1))
    try:
        return int(float(number) * unit)
    except ValueError:
        raise FieldRefused("size", f"{text!r} is not a size such as 512MiB") from None


def progress_bar() -> Progress:
    """On standard error, gone when it is done."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=ERRORS, transient=True)


def print_warnings(warnings: tuple[str, ...]) -> None:
    """One line each, on standard error."""
    for warning in warnings:
        ERRORS.print(f"warning: {warning}", markup=False, style="yellow")


@contextmanager
def sentences() -> Iterator[None]:
    """Errors of the tree end the program with their message and code, not with a trace."""
    try:
        yield
    except AmalgamError as error:
        ERRORS.print(f"{error.code}: {error.message}", markup=False, style="red", soft_wrap=True)
        raise typer.Exit(2) from None
    except ValueError as error:
        # What pydantic refuses in a recipe file or an option.
        ERRORS.print(f"invalid_recipe: {error}", markup=False, style="red", soft_wrap=True)
        raise typer.Exit(2) from None
