blocks = []
while True:
    blocks.append(bytearray(10 * 1024 * 1024))
    print(f"holding {len(blocks) * 10} MB")
