"""Engines in processes of their own, on this machine or others: replicas on Ray Serve, and the engine that asks them."""
