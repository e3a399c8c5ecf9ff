"""The Python side of Fast-Flow that everybody shares: API stubs, client, pipeline format, service plumbing."""
