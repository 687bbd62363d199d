"""What things are: names, versions, recipes, jobs. Standard library and Pydantic only; no I/O."""
