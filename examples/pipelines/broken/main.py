import json

print("Reading the order ...")
order = json.loads('{"article": "pump", "amount": 3}')
print("Price:", order["price"] * order["amount"])
