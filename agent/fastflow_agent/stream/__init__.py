"""The agent's side of the Connect stream: liveness, desired state and attempt events."""
