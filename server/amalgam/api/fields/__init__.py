"""What the fields of an inference request may be: their tables, checks and rewrites."""
