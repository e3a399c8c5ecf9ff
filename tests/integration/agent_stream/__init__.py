"""The agent stream of a real control plane, with a scripted agent at the other end of a real connection."""
