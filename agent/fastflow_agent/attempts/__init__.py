"""The life of one attempt on this host, from the binding of its slot to the last trace of it."""
