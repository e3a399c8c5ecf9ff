# /// script
# requires-python = ">=3.11"
# dependencies = ["humanize==4.11.0"]
# ///
import humanize

print("This script names its own packages:", humanize.naturalsize(3_500_000_000))
