"""Generated stubs of the agent stream; of use to agents alone."""
