"""Vision-language models on disk as people have them: a tokenizer with the family's marks, and what prepares pictures.

The tokenizer is the demo model's. Its chat template writes a picture's mark where the picture stands.
"""

import base64
import io
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import AutoProcessor, AutoTokenizer, PreTrainedModel

from amalgam.demo.base_model import ensure_base_model
from amalgam.settings import Settings
from tests.models.tiny_models import FAMILIES, Family, build_row, of_vocabulary

VOCABULARY = 49280
"""The tokenizer's, with room for marks."""
_RGB = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "rescale_factor": 1 / 255, "resample": 3}
_STEPS = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True}
_PATCHES = {"min_pixels": 56 * 56, "max_pixels": 112 * 112, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
_WHOLE = {"size": {"longest_edge": 28}, "max_image_size": {"longest_edge": 28}, "do_image_splitting": False}

MARKS: Mapping[str, tuple[str, ...]] = {
    "llava": ("<image>",),
    "gemma3": ("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
    "mistral3": ("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
    "qwen2_vl": ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"),
    "qwen2_5_vl": ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"),
    "qwen3_vl": ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"),
    "idefics3": ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"),
    "smolvlm": ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"),
}
"""The first one's id is what the model looks for; Gemma looks for the third."""
_LINES = tuple("\n" * count for count in (1, 2, 3, 4))
"""Gemma's tokenizer has an entry for each, which vLLM looks up: an empty line stands around its pictures."""
_IDS: Mapping[str, tuple[str, ...]] = {
    "llava": ("image_token_index",),
    "gemma3": ("boi_token_index", "eoi_token_index", "image_token_index"),
    "mistral3": ("image_token_index", "", ""),
    "idefics3": ("image_token_id", "", "", ""),
    "smolvlm": ("image_token_id", "", "", ""),
    "qwen": ("image_token_id", "vision_start_token_id", "vision_end_token_id", "video_token_id"),
}
"""The config's fields for the marks."""
_PROCESSORS: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llava": (
        {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 28},
            "crop_size": {"height": 28, "width": 28},
            "do_center_crop": True,
        },
        {
            "processor_class": "LlavaProcessor",
            "image_token": "<image>",
            "patch_size": 14,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
    ),
    "gemma3": (
        {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 28, "width": 28}},
        {"processor_class": "Gemma3Processor", "image_seq_length": 4},
    ),
    "mistral3": (
        {
            "image_processor_type": "PixtralImageProcessor",
            "size": {"longest_edge": 56},
            "patch_size": {"height": 14, "width": 14},
        },
        {"processor_class": "PixtralProcessor", "patch_size": 14, "spatial_merge_size": 2},
    ),
    "qwen2_vl": (
        {"image_processor_type": "Qwen2VLImageProcessor", **_PATCHES},
        {"processor_class": "Qwen2VLProcessor"},
    ),
    "qwen2_5_vl": (
        {"image_processor_type": "Qwen2VLImageProcessor", **_PATCHES},
        {"processor_class": "Qwen2_5_VLProcessor"},
    ),
    "qwen3_vl": (
        {"image_processor_type": "Qwen2VLImageProcessor", **_PATCHES, "patch_size": 16},
        {"processor_class": "Qwen3VLProcessor"},
    ),
    "idefics3": (
        {"image_processor_type": "Idefics3ImageProcessor", **_WHOLE},
        {"processor_class": "Idefics3Processor", "image_seq_len": 1},
    ),
    "smolvlm": (
        {"image_processor_type": "SmolVLMImageProcessor", **_WHOLE},
        {"processor_class": "SmolVLMProcessor", "image_seq_len": 1},
    ),
}


def demo_tokenizer_files(folder: Path) -> None:
    """The demo model's tokenizer."""
    demo = ensure_base_model(Settings().storage.cache_dir, lambda _: None)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(demo / name, folder / name)


def write_processor(family: str, folder: Path) -> dict[str, int]:
    """Everything beside the model itself, in ``folder``; the marks' ids, which the model's config has to name."""
    demo_tokenizer_files(folder)
    marks = MARKS[family]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks], special_tokens=True)
    if family == "gemma3":
        tokenizer.add_tokens([AddedToken(lines, normalized=False) for lines in _LINES])
        names = ("boi_token", "eoi_token", "image_token")
        tokenizer.init_kwargs["model_specific_special_tokens"] = dict(zip(names, marks, strict=True))
    shown = "<|vision_start|><|image_pad|><|vision_end|>" if family.startswith("qwen") else marks[0]
    tokenizer.chat_template = (
        "{% for message in messages %}{% for part in message.content %}"
        "{% if part.type == 'text' %}{{ part.text }}{% else %}" + shown + "{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    tokenizer.save_pretrained(folder)
    image, processor = _PROCESSORS[family]
    (folder / "preprocessor_config.json").write_text(json.dumps({**_STEPS, **_RGB, **image}))
    (folder / "processor_config.json").write_text(json.dumps(processor))
    return {mark: tokenizer.convert_tokens_to_ids(mark) for mark in marks}


def save(model: PreTrainedModel, folder: Path) -> None:
    """As published checkpoints have it: CLIP's and SigLIP's modules are below ``vision_model``, where vLLM looks."""
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    inner = r"(vision_tower\.)(?=(embeddings|encoder|pre_layrnorm|post_layernorm|head)\.)"
    renamed = {re.sub(inner, r"\1vision_model.", name): tensor for name, tensor in load_file(path).items()}
    save_file(renamed, path, metadata={"format": "pt"})


def picture(seed: int = 0, size: tuple[int, int] = (56, 56)) -> Image.Image:
    """Noise."""
    noise = torch.randint(
        0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    return Image.fromarray(noise.numpy())


def data_url(image: Image.Image, kind: str = "PNG") -> str:
    """The picture as a URL that holds it."""
    file = io.BytesIO()
    image.save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def prepared(folder: Path, text: str, image: Image.Image) -> dict[str, torch.Tensor]:
    """What the model is given for the picture and the text, by the processor in ``folder``."""
    processor = AutoProcessor.from_pretrained(folder)
    rendered = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}], tokenize=False
    )
    given = dict(processor(text=[rendered], images=[image], return_tensors="pt"))
    # By these transformers lets the tokens of one of Gemma's pictures see each other; vLLM's attention on CPU does not.
    given.pop("token_type_ids", None)
    return given


def family(name: str, ids: Mapping[str, int]) -> Family:
    """The row of `FAMILIES` with the tokenizer's vocabulary and marks."""
    row = of_vocabulary(FAMILIES[name], VOCABULARY)
    places = dict(zip(_IDS.get(name, _IDS["qwen"]), MARKS[name], strict=True))
    config = row.config[1] | {key: ids[mark] for key, mark in places.items() if key}
    rope = config["text_config"].get("rope_parameters")
    if rope:
        # Half of a head's 32 entries turn, by time, height and width.
        config["text_config"] = config["text_config"] | {"rope_parameters": rope | {"mrope_section": [4, 6, 6]}}
    return replace(row, config=(row.config[0], config))


def build(row: Family) -> PreTrainedModel:
    """`build_row`, with nothing left at zero that pictures go through."""
    model = build_row(row)
    for name, parameter in model.named_parameters():
        if "projector" in name and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model
