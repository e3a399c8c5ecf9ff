import time

print("Taking 80 MB, more than the soft limit of 64 MB ...")
block = bytearray(80 * 1024 * 1024)
time.sleep(3)

print("Giving it back.")
del block
time.sleep(3)
