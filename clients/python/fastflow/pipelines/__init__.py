"""The pipeline format: what makes a folder a pipeline, and how its code travels.

Shared by `ffctl pipelines validate`, the control plane and the agent, so that all three agree. Reading order:
`discovery` (which folders are pipelines), `metadata` (what pipeline.json may say), `bundle` (the code as one archive).
"""
