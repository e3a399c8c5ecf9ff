import os

greeting = os.environ["GREETING"]
name = os.getenv("NAME", "world")
print(f"{greeting}, {name}!")

if "GREETING_TOKEN" in os.environ:
    print("My token is", os.environ["GREETING_TOKEN"])
