"""What a waiting person sees on stderr: one moving line on a terminal, otherwise a line whenever something changes."""

import sys

from rich.progress import Progress as RichProgress
from rich.progress import SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from ffctl.output import clean, console, say


class Progress:
    """What is waited for: `subject` ("run 1a2b3c4d") and how far it is."""

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._text = ""
        self._moving: RichProgress | None = None
        self._task = TaskID(0)
        self._terminal = sys.stderr.isatty()
        self._line_open = False

    def update(self, text: str) -> None:
        """Says what is waited for now."""
        if not self._terminal:
            if text != self._text:
                say(f"{self._subject}: {text}")
        elif self._moving is None:
            self._start(text)
        else:
            self._moving.update(self._task, description=self._described(text))
        self._text = text

    def settle(self, text: str) -> None:
        """Says `text` where lines are kept, and leaves a terminal to the program's output."""
        if self._terminal:
            self.stop()
        else:
            self.update(text)

    def note(self, text: str) -> None:
        """Says something that stays, above the moving line."""
        if self._line_open:
            # The program's last line has no end yet; the note must not be glued to it.
            sys.stderr.write("\n")
            self._line_open = False
        if self._moving is None:
            say(text)
        else:
            self._moving.console.print(clean(text))

    def stop(self) -> None:
        """Takes the moving line away; `update` brings one back."""
        if self._moving is not None:
            self._moving.stop()
            self._moving = None

    def wrote(self, data: bytes) -> None:
        """Takes note of program output that goes to the same terminal."""
        if data and self._terminal and sys.stdout.isatty():
            self._line_open = not data.endswith(b"\n")

    def _start(self, text: str) -> None:
        self._moving = RichProgress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=console(stderr=True),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._moving.add_task(self._described(text), total=None)
        self._moving.start()

    def _described(self, text: str) -> str:
        return clean(f"{self._subject}: {text}")
