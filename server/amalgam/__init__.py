"""Amalgam: serve many LoRA adapters from one base model, and merge them exactly while serving."""

__version__ = "0.1.0"
