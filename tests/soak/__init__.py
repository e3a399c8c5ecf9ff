"""Many runs and many reconnects, and nothing that grows; `make soak`."""
