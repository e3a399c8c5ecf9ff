"""ffctl: Fast-Flow on the command line."""
