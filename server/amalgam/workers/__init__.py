"""The processes beside the server: one builds merges and exports from the queue, the other the blends of requests."""
