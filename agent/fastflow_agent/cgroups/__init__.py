"""Control groups: what a slot uses, when it crosses a soft limit, and why it ended."""
