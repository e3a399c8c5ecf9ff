"""Secrets: values that runs get as environment variables, encrypted at rest, never shown.

`service` is what other packages use; `sealing` is the encryption below it.
"""
