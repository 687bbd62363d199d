"""Fixtures for every test: hypothesis profiles and nothing global besides."""

import os

# As the server sets it before it imports vLLM, whose request classes read it when they are imported.
os.environ.setdefault("VLLM_MAX_STOP_STRINGS", "32")

from hypothesis import settings

# No deadline: these machines are shared and noisy. CI draws the same examples every time.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
