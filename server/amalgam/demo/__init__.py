"""The embedded default: base model, tasks with exact metrics, training."""
