"""The plane of clients: read, check, charge, and let the engine's own handler answer."""
