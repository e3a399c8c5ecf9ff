"""One run of one folder on this machine, with no control plane: `fastflow-agent local`.

The run is an attempt like any other, with the same worker, runtime, uv cache, sampler, spool and verdict. Only what a
control plane does is done here: `plan` reads the pipeline, `run` says what is wanted of the attempt and hears its
events, `printer` takes its output, `folder` is where all of it is kept meanwhile.
"""
