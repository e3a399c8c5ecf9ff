"""The uv cache of this host: immutable generations, each of which holds one environment, and the stock they share.

A run sees one generation through an overlay whose upper part is thrown away, so no run can change what another imports.
A new environment is prepared in a copy of the stock, made of hard links, and only what uv alone has fetched comes into
the stock: so no package can either.
"""

from fastflow_agent.uvcache.cache import Generation, UvCache
from fastflow_agent.uvcache.holding import constraints
from fastflow_agent.uvcache.refusal import EnvironmentFault

__all__ = ["EnvironmentFault", "Generation", "UvCache", "constraints"]
