"""The two sides of the merge benchmark, each a process of its own: ours and PEFT's.

A side reads a job a line and answers ``{"seconds", "cpu_seconds", "peak"}``, all as JSON. It is started with
its folders already known, loads what it needs, and says ``{"ready": …}`` with its resident memory before any merge.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LAYER_SHAPES = {
    "smollm2": {"q_proj": (576, 576), "k_proj": (192, 576), "v_proj": (192, 576), "o_proj": (576, 576),
                "gate_proj": (1536, 576), "up_proj": (1536, 576), "down_proj": (576, 1536)},
    "llama-3-8b": {"q_proj": (4096, 4096), "k_proj": (1024, 4096), "v_proj": (1024, 4096), "o_proj": (4096, 4096),
                   "gate_proj": (14336, 4096), "up_proj": (14336, 4096), "down_proj": (4096, 14336)},
    "llama-3-70b": {"q_proj": (8192, 8192), "k_proj": (1024, 8192), "v_proj": (1024, 8192), "o_proj": (8192, 8192),
                    "gate_proj": (28672, 8192), "up_proj": (28672, 8192), "down_proj": (8192, 28672)},
}  # fmt: skip
LAYERS = {"smollm2": 30, "llama-3-8b": 32, "llama-3-70b": 80}


def module_shapes(model: str, layers: int, only: tuple[str, ...] = ()) -> dict[str, tuple[int, int]]:
    """Canonical module name -> (out, in)."""
    block = {name: "self_attn" if name[0] in "qkvo" and name != "up_proj" else "mlp" for name in LAYER_SHAPES[model]}
    return {
        f"model.layers.{layer}.{block[name]}.{name}": shape
        for layer in range(layers)
        for name, shape in LAYER_SHAPES[model].items()
        if not only or name in only
    }


def write_synthetic(folder: Path, shapes: dict[str, tuple[int, int]], rank: int, seed: int) -> None:
    """A bf16 LoRA adapter with random factors, as PEFT stores them."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (rows, columns) in shapes.items():
        prefix = f"base_model.model.{name}"
        a = torch.randn(rank, columns, generator=generator) / columns**0.5
        b = torch.randn(rows, rank, generator=generator) * 0.02
        tensors[f"{prefix}.lora_A.weight"], tensors[f"{prefix}.lora_B.weight"] = a.bfloat16(), b.bfloat16()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = sorted({name.rpartition(".")[2] for name in shapes})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "base", "r": rank,
              "lora_alpha": 2 * rank, "target_modules": targets, "bias": "none"}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))


def our_side(folders: list[Path], threads: int) -> Callable[[dict[str, Any]], float]:
    """Files mapped before the clock starts; read, merged and converted to bf16 while it runs."""
    from amalgam.domain.recipe import Recipe
    from amalgam.merge.plan import plan
    from amalgam.merge.run import RunOptions, run
    from amalgam.store.peft_folder import read_peft_folder
    from amalgam.store.tensor_files import open_tensors

    torch.set_num_threads(threads)
    sources = {}
    for folder in folders:
        header = read_peft_folder(folder, None, scan_values=False).require()
        sources[str(folder)] = open_tensors(folder, header, digest=folder.name)

    def merge(job: dict[str, Any]) -> float:
        inputs = [{"adapter": name, "weight": weight} for name, weight in zip(sources, job["weights"], strict=False)]
        recipe = Recipe.model_validate({**job["ours"], "inputs": inputs})
        started = time.perf_counter()
        layout = plan(recipe, {name: source.header for name, source in sources.items()}, max_rank=64)
        done = list(run(layout, sources, RunOptions(diagnostics=False)))
        seconds = time.perf_counter() - started
        assert len(done) == len(layout.modules)
        return seconds

    return merge


def peft_side(
    folders: list[Path], threads: int, model: str, layers: int, only: tuple[str, ...]
) -> Callable[[dict[str, Any]], float]:
    """Adapters loaded into a model of the right shapes before the clock starts."""
    import peft

    torch.set_num_threads(threads)
    base = _skeleton(module_shapes(model, layers, only))
    names = [folder.name for folder in folders]
    wrapped = peft.PeftModel.from_pretrained(base, folders[0], adapter_name=names[0])
    for folder, name in zip(folders[1:], names[1:], strict=True):
        wrapped.load_adapter(folder, adapter_name=name)

    def merge(job: dict[str, Any]) -> float:
        options = dict(job["peft"])
        started = time.perf_counter()
        wrapped.base_model.add_weighted_adapter(names[: len(job["weights"])], job["weights"], "merged", **options)
        seconds = time.perf_counter() - started
        wrapped.delete_adapter("merged")
        return seconds

    return merge


def _skeleton(shapes: dict[str, tuple[int, int]]) -> torch.nn.Module:
    """Linear modules under the right names; their weights are never read by a merge, so they share one number."""
    root = torch.nn.Module()
    for name, (rows, columns) in shapes.items():
        at = root
        *parents, last = name.split(".")
        for parent in parents:
            if parent not in dict(at.named_children()):
                at.add_module(parent, torch.nn.Module())
            at = at.get_submodule(parent)
        linear = torch.nn.Linear(1, 1, bias=False)
        linear.in_features, linear.out_features = columns, rows
        linear.weight = torch.nn.Parameter(torch.zeros(1, 1).expand(rows, columns), requires_grad=False)
        at.add_module(last, linear)
    root.__dict__["prepare_inputs_for_generation"] = lambda *args, **kwargs: None
    return root


def resident_bytes() -> int:
    """Memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def main() -> None:
    request = json.loads(sys.argv[1])
    folders = [Path(folder) for folder in request["folders"]]
    only = tuple(request.get("only", ()))
    if request["side"] == "ours":
        merge = our_side(folders, request["threads"])
    else:
        merge = peft_side(folders, request["threads"], request["model"], request["layers"], only)
    print(json.dumps({"ready": resident_bytes()}), flush=True)
    for line in sys.stdin:
        processor = time.process_time()
        seconds = merge(json.loads(line))
        processor = time.process_time() - processor
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "cpu_seconds": processor, "peak": peak}), flush=True)


if __name__ == "__main__":
    main()
