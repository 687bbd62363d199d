"""The codes that no error class declares: findings of a check, and jobs that fail without an error of their own.

Codes of classes are described by the docstring of their class. `docs/errors.md` is made from both.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class CodeSpec:
    """One code.

    Attributes:
        code: stable machine-readable name.
        means: what it says, without a full stop.
        next_step: what the reader of the error does.
        statuses: HTTP statuses that it is answered with; none for a warning.
    """

    code: str
    means: str
    next_step: str
    statuses: tuple[int, ...] = (422,)


def _warning(code: str, means: str, next_step: str) -> CodeSpec:
    return CodeSpec(code, f"Warning: {means}", next_step, ())


FINDINGS: Final[tuple[CodeSpec, ...]] = (
    CodeSpec("missing_file", "Config or weights are missing", "save the adapter with PEFT"),
    CodeSpec(
        "invalid_config",
        "`adapter_config.json` cannot be read, or leaves ranks or scales unclear",
        "save it again with PEFT",
    ),
    CodeSpec(
        "unsafe_format",
        "Pickled weights in place of safetensors, or a pickle under the name of a file that is read",
        "save as safetensors",
    ),
    CodeSpec("several_adapters", "Two adapters side by side in one file", "save one, with `selected_adapters`"),
    CodeSpec("unexpected_file", "Something that is no file of an adapter", "leave it out"),
    CodeSpec("duplicate_file", "A file was sent twice", "send each once"),
    CodeSpec("file_too_large", "A text file of several megabytes", "shorten it"),
    CodeSpec("unknown_modules", "Modules that the base model does not have", "use an adapter of this base model"),
    CodeSpec("incomplete_pair", "A module with only one of its two factors", "save it again"),
    CodeSpec("unknown_tensors", "Tensors that plain LoRA does not have", "save plain LoRA"),
    CodeSpec("no_effect", "The adapter would change nothing", "check that it was trained and saved"),
    CodeSpec(
        "unsupported_dora", "DoRA", "`amalgam merge build FOLDER -o OUT --base MODEL` converts it, or train without it"
    ),
    CodeSpec("unsupported_bias", "Trained biases", 'train with `bias="none"`'),
    CodeSpec(
        "unsupported_modules",
        "Fully trained modules, adapted embeddings, single parameters",
        "train linear modules only",
    ),
    CodeSpec("unsupported_init", "An initialisation that changed the base weights", "save it converted to plain LoRA"),
    CodeSpec("unsupported_alora", "The variant aLoRA", "train plain LoRA"),
    CodeSpec("unsupported_layer_replication", "Replicated layers", "train on the base model as it is"),
    CodeSpec("unsupported_variant", "Another variant of LoRA", "train plain LoRA"),
    _warning(
        "profile_off",
        "the files say how the adapter wants to be asked; that is kept, and requests do not get it",
        "switch the version's serving profile on, or upload with ``use_profile``",
    ),
    _warning(
        "profile_ignored",
        "a file beside the adapter that says how it wants to be asked, and cannot be read so",
        "mend the file, or put the serving profile by the API",
    ),
    CodeSpec("unsupported_dtype", "Factors that are not BF16, F16, F32 or F64", "save them as one of these"),
    _warning("values_rounded", "factors stored as F64 were rounded to F32, as PEFT reads them", "none"),
    _warning(
        "modules_not_named",
        "modules have factors that the config leaves out; they are applied here, and PEFT leaves them out",
        "mend `target_modules`, `exclude_modules` or `layers_to_transform`, or take the factors out",
    ),
    _warning(
        "base_unverified", "the config names another base model, the shapes agree", "check that it is the same model"
    ),
    _warning(
        "base_weights_ignored",
        "whole weights that equal the base model's were left out",
        "save with `save_embedding_layers=False`",
    ),
    _warning("file_ignored", "names once what lies beside an adapter and was not read", "none"),
    _warning(
        "kept_unmeasured",
        "a merge of several inputs had no prompts of them, so nobody knows what it keeps of each",
        "fit it to prompts of its inputs, or give it a probe, and `require.kept`",
    ),
    _warning(
        "skill_lost",
        "a merge has made the answers of one of its inputs much less probable",
        "fit the merge to prompts of its inputs, give it a larger weight, take another method, or leave an input out",
    ),
    _warning(
        "keys_renamed",
        "keys carry an adapter's name, wrappers or a second prefix, and were read without",
        "save with `save_pretrained`",
    ),
    _warning(
        "training_tensors_ignored", "tensors that VeLoRA or MonteCLoRA use in training only were left out", "none"
    ),
)
"""A check of an adapter finds these; a refused upload carries all of them."""

ALSO_FINDINGS: Final = (
    "delta_too_large",
    "non_finite",
    "non_finite_output",
    "path_denied",
    "rank_too_large",
    "shape_mismatch",
)
"""They are codes of classes that a check reports as findings too, with status 422."""

JOB_CODES: Final[tuple[CodeSpec, ...]] = (
    CodeSpec("job_cancelled", "The job that was waited for was cancelled", "submit it again", (409,)),
    CodeSpec(
        "attempts_exhausted",
        "The worker died or fell silent `AMALGAM_JOB_MAX_ATTEMPTS` times on this job",
        "the log says why",
        (500,),
    ),
)
"""They tell why a job ended without a version, where no class says it."""
