"""The uv cache of this host: immutable generations, each of which holds a number of environments.

A run sees one generation through an overlay whose upper part is thrown away, so no run can change what another imports.
A new environment is prepared in a copy of the newest generation, made of hard links.
"""

from fastflow_agent.uvcache.cache import EnvironmentFault, Generation, UvCache
from fastflow_agent.uvcache.holding import constraints

__all__ = ["EnvironmentFault", "Generation", "UvCache", "constraints"]
