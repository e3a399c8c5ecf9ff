"""What a benchmark yields: a figure beside its yardstick, measured in the same run."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One measured value.

    `goal` is an upper bound where `smaller_is_better`, else a lower bound; it bounds the ratio where there is a
    yardstick (in the same unit), else the value itself. Without a goal the figure is only to be known.
    """

    name: str
    value: float
    unit: str
    goal: float | None
    yardstick: float | None = None
    yardstick_name: str = ""
    smaller_is_better: bool = True

    @property
    def ratio(self) -> float | None:
        """Value by yardstick; None where there is no yardstick."""
        return None if self.yardstick is None else self.value / self.yardstick

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None where there is none."""
        if self.goal is None:
            return None
        measured = self.value if self.ratio is None else self.ratio
        return measured <= self.goal if self.smaller_is_better else measured >= self.goal


_VERDICTS = {True: "[green]met[/]", False: "[red]missed[/]", None: ""}


def print_table(figures: Iterable[Figure]) -> None:
    """Prints the figures as a table on standard output."""
    table = Table("measure", "value", "yardstick", "ratio", "goal", "")
    for figure in figures:
        sign = "≤" if figure.smaller_is_better else "≥"
        unit = "×" if figure.ratio is not None else f" {figure.unit}"
        table.add_row(
            figure.name,
            f"{figure.value:.3g} {figure.unit}",
            f"{figure.yardstick:.3g} {figure.unit} ({figure.yardstick_name})" if figure.yardstick is not None else "",
            f"{figure.ratio:.2f}×" if figure.ratio is not None else "",
            f"{sign} {figure.goal:g}{unit}" if figure.goal is not None else "",
            _VERDICTS[figure.met],
        )
    Console(width=150).print(table)


def write_json(figures: Iterable[Figure], path: Path) -> None:
    """Writes the figures to `path`, with ratio and verdict."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**asdict(figure), "ratio": figure.ratio, "met": figure.met} for figure in figures]
    path.write_text(json.dumps({"figures": rows}, indent=2) + "\n")
