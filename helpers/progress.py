"""Progress in sight: one line of text that updates in place, in a notebook and in a terminal."""

import sys
import time


def in_notebook() -> bool:
    """Whether an IPython kernel shows figures (a plain IPython shell does not)."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")


class Display:
    """One place in a cell's output whose content is replaced, at most every ``seconds``; silent outside a notebook."""

    def __init__(self, seconds: float):
        self.seconds, self.handle, self.last = seconds, None, 0.0

    def due(self) -> bool:
        """Whether the last drawing is long enough ago."""
        return time.monotonic() - self.last >= self.seconds

    def draw(self, content, raw: bool = False) -> None:
        """Replace what is shown.  raw: ``content`` is {MIME type: data}."""
        if in_notebook():
            from IPython.display import display

            if self.handle is None:
                self.handle = display(content, raw=raw, display_id=True)
            else:
                self.handle.update(content, raw=raw)
        self.last = time.monotonic()


class Line:
    """A line of text that updates in place, at most twice a second, after ``wait`` seconds; a log file gets the last one."""

    def __init__(self, wait: float = 0.0):
        self.display, self.width, self.visible = Display(0.5), 0, False
        self.display.last = time.monotonic() - 0.5 + wait

    def show(self, text: str, last: bool = False) -> None:
        """Replace the line.  last: this one stays."""
        if not (last or self.display.due()):
            return
        self.visible = True
        self.display.draw({"text/plain": text}, raw=True)
        if not in_notebook() and (last or sys.stdout.isatty()):
            start, end = ("\r", "\n" if last else "") if sys.stdout.isatty() else ("", "\n")
            print(f"{start}{text:{self.width}}", end=end, flush=True)
            self.width = len(text)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
