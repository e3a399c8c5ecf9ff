"""What the long-running programs share: settings from files and environment, and structured logs."""
