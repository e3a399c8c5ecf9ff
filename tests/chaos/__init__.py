"""Chaos: many short runs while a script kills, stops, freezes and cuts, and a checker apart from the product's code.

`script` says what happens when, as a pure function of the seed; `stage` carries it out on real programs; `pipeline` is
what the runs run, and writes the ledger; `host` looks what is left on this machine; `evidence` and the `rules` judge.
"""
