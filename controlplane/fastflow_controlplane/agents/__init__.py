"""The control plane's side of the agent stream: sessions, what agents report, what they shall do."""
