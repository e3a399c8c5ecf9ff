"""The host lab (docstring to come)."""
