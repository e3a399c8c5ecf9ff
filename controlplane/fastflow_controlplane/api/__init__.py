"""The gRPC surface: one thin servicer per service, which translates and delegates; everything is decided elsewhere."""
