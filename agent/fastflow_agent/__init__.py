"""The agent: runs attempts on one worker host and tells the control plane the truth about them."""
