"""Placement: which waiting run goes to which agent, and why another one waits. No SQL and no gRPC in here."""
