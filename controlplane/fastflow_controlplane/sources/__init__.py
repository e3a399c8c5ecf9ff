"""Where pipelines come from: a mounted folder, snapshots of it, and the bundles that agents fetch.

`catalog` is what other packages use; below it `mounted` reads the folder, `repository` keeps the exact files in a Git
object database, `bundles` the archives made of them.
"""
