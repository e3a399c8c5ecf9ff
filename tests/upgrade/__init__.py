"""Control plane and agents of two versions that follow each other: what is kept in `previous` is the older of them.

`previous/proto` is the protocol as it was released, and is replaced by that of the next release, never edited. The
programs beside it speak it with stubs of their own, in processes of their own: one process can hold only one of two
messages of the same name. `previous/journals` are an agent's journals, written by that version's own code, each cut off
where the agent was killed; `every-record` has each kind of record that it knew. `previous/uvcache` are indexes of uv
caches.
"""
