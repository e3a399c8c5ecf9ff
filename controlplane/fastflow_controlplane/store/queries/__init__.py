"""Queries and writes, one module per subject: plain functions of a connection that take and return plain values."""
