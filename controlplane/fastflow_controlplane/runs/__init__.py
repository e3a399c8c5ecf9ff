"""Runs and their attempts: which states there are, who moves them, and what callers may ask of them."""
