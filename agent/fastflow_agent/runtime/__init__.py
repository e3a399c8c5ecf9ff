"""Runtimes: how a slot becomes a running program. `base` is the contract, `docker` and `process` implement it."""
