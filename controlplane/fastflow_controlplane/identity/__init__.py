"""Who calls: the shared token, until users and roles have their own part."""
