"""The engine on a CPU: LoRA's products, how adapters get into them, and how the engine's processes start and wait."""
