"""Where the demo adapters come from: their tasks, how they are trained, and how answers are scored.

A package beside the server, which does not need it: the server only serves the adapters that were made with it.
"""
