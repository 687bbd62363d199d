"""The embedded default: its base model, and where its adapters lie."""
