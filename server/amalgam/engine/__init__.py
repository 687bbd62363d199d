"""Token generation: the only code that imports vLLM."""
