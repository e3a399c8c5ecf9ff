from statistics import mean

from tabulate import tabulate

READINGS = {
    "Hamburg": [4.1, 6.3, 5.2],
    "Kassel": [2.0, 7.5, 4.4],
    "Passau": [-1.2, 5.9, 1.8],
}


def main():
    rows = [(city, min(values), max(values), mean(values)) for city, values in READINGS.items()]
    print(tabulate(rows, headers=["city", "min", "max", "mean"], floatfmt=".1f"))


if __name__ == "__main__":
    main()
