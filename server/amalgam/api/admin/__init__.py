"""The admin plane: adapters, aliases, merges, evaluations, tenants; parse, call one service, encode."""
