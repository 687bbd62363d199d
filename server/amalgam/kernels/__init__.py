"""Tensor in, tensor out; knows nothing of adapters."""
