"""Fixtures for every test: hypothesis profiles and nothing global besides."""

import os

from hypothesis import settings

# No deadline: these machines are shared and noisy. CI draws the same examples every time.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
