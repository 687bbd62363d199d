"""Engines in processes of their own, here or elsewhere: replicas on Ray Serve, and the engine that asks them."""
