"""The control plane: knows pipelines, queues runs, places them on agents, keeps what came of them."""
