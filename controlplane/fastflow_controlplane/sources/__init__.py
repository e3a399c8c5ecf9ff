"""Where pipelines come from: Git repositories and mounted folders, and the bundles that agents fetch.

`catalog` is what other packages use, `syncing` what keeps Git sources up to date. Below them a `reader` reads one
`source`: `git` (a commit in the copy that `mirror` keeps) or `mounted` (a folder, whose files `repository` keeps).
`fetch_process` runs `fetching`, the only part that speaks to a network. `bundles` keeps the archives made of the code.
"""
