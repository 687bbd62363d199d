"""Small base models as transformers saves them, with random weights, and exports of them by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from amalgam.domain.export import ExportRecord
from amalgam.domain.expression import parse_expression
from amalgam.merge.build import BuildOptions
from amalgam.store.export_folders import ExportFolders
from amalgam.store.peft_folder import read_peft_folder
from amalgam.store.tensor_files import open_tensors
from amalgam.workers.exporter import ExportOrder, describe_export, stage_export

SHAPE: dict[str, Any] = {"layers": 2, "hidden": 16, "heads_kv_dim": 8, "intermediate": 24, "rank": 4}
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def save_base(folder: Path, *, tied: bool = False, dtype: torch.dtype = torch.bfloat16, shard: str = "4KB") -> Path:
    """A Llama whose weights are large enough that logits tell models apart, in several files."""
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=32, tie_word_embeddings=tied, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(7)
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder, max_shard_size=shard)
    (folder / "tokenizer.json").write_text('{"not": "read"}')
    (folder / "modeling_custom.py").write_text("raise SystemExit")
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def order(base: Path, expression: str, *, max_rank: int = 64, **spec: Any) -> ExportOrder:
    """An export of adapter folders that the expression names."""
    recipe = parse_expression(expression, allow_paths=True)
    headers = {name: read_peft_folder(Path(name), None).require() for name in recipe.adapters}
    sources = {name: open_tensors(Path(name), header) for name, header in headers.items()}
    made = describe_export(
        recipe, sources, base, BuildOptions(max_rank=max_rank), dtype="base", max_shard_bytes=1 << 30
    )
    # Shards of these models are smaller than what may be asked for.
    return replace(made, spec=made.spec.model_copy(update=spec))


def export(given: ExportOrder, out: Path) -> ExportRecord:
    folders = ExportFolders(out.parent)
    staging = folders.stage()
    try:
        stage_export(given, folders, staging)
        folders.publish(staging, out.name)
    finally:
        staging.close()
    return folders.get(out.name)


def logits(folder: Path) -> Tensor:
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        found: Tensor = model(TOKENS).logits
        return found
