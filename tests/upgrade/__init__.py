"""Control plane and agents of two versions that follow each other: what is kept in `previous` is the older of them.

`previous/proto` is the protocol as it was released, and is replaced by that of the next release, never edited. The
programs beside it speak it with stubs of their own, in processes of their own: one process can hold only one of two
messages of the same name.
"""
