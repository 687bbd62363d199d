"""A tiny model that hears, on disk as people have it, and sounds for it."""

import base64
import io
import json
import re
import wave
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import AutoProcessor, AutoTokenizer, PreTrainedModel

from tests.models.more_models import MORE
from tests.models.pictures import VOCABULARY, demo_tokenizer_files
from tests.models.tiny_models import Family, of_vocabulary

RATE = 16_000
MARK = "<sound>"
_MELS = 16
_LONGEST_S = 30
"""vLLM tries the longest sound at its start."""


def write_processor(folder: Path) -> int:
    """Everything beside the model itself, in ``folder``; the mark's id, which the model's config has to name."""
    demo_tokenizer_files(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(MARK, special=True, normalized=False)], special_tokens=True)
    tokenizer.chat_template = (
        "{% for message in messages %}{% for part in message.content %}"
        "{% if part.type == 'text' %}{{ part.text }}{% else %}" + MARK + "{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    tokenizer.save_pretrained(folder)
    features = {
        "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": _MELS, "sampling_rate": RATE,
        "hop_length": 160, "chunk_length": 30, "n_fft": 400, "padding_side": "right", "padding_value": 0.0,
        "return_attention_mask": True,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(features))
    processor = {"processor_class": "AudioFlamingo3Processor", "audio_token": MARK, "max_audio_len": _LONGEST_S}
    (folder / "processor_config.json").write_text(json.dumps(processor | {"feature_extractor": features}))
    found: int = tokenizer.convert_tokens_to_ids(MARK)
    return found


def family(mark: int) -> Family:
    """Audio Flamingo 3's row with the tokenizer's vocabulary, and a context for the longest sound."""
    row = of_vocabulary(MORE["audioflamingo3"], VOCABULARY)
    text = row.config[1]["text_config"] | {"max_position_embeddings": 2048}
    return replace(row, config=(row.config[0], row.config[1] | {"text_config": text, "audio_token_id": mark}))


def save(model: PreTrainedModel, folder: Path) -> None:
    """As published checkpoints have it: transformers 5.19 writes one ``model.`` too many into the names of text."""
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    twice = re.compile(r"^language_model\.model\.model\.")
    renamed = {twice.sub("language_model.model.", name): tensor for name, tensor in load_file(path).items()}
    save_file(renamed, path, metadata={"format": "pt"})


def sound(seed: int, seconds: float = 1.0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Noise, as samples of sixteen bits are read."""
    values = np.random.default_rng(seed).integers(-8000, 8000, int(seconds * RATE))
    return (values / 32768).astype(np.float32)


def tones(rate: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A second of the same tones at any rate that has them."""
    seconds = np.arange(rate) / rate
    mixed = sum(np.sin(2 * np.pi * hertz * seconds + hertz) for hertz in (220, 550, 990, 1730, 2810))
    values = np.round(np.asarray(mixed) * 4000)
    return (values / 32768).astype(np.float32)


def encoded(samples: np.ndarray[Any, np.dtype[np.float32]], rate: int = RATE) -> str:
    """The sound as a WAV file, in base64."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((samples * 32768).astype("<i2").tobytes())
    return base64.b64encode(file.getvalue()).decode()


def prepared(folder: Path, text: str, samples: np.ndarray[Any, np.dtype[np.float32]]) -> Mapping[str, torch.Tensor]:
    """What the model is given for the sound and the text, by the processor in ``folder``."""
    processor = AutoProcessor.from_pretrained(folder)
    return dict(processor(text=[MARK + text], audio=[samples]))
