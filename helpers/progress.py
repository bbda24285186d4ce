"""Progress in sight: one line of text that updates in place, in a notebook and in a terminal."""

import sys
import time


def in_notebook() -> bool:
    """Whether an IPython kernel shows figures (a plain IPython shell does not)."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class Display:
    """One place in a cell's output whose content is replaced, at most every ``seconds``; silent outside a notebook."""

    def __init__(self, seconds: float):
        self.seconds, self.handle, self.last = seconds, None, 0.0

    def due(self) -> bool:
        return time.monotonic() - self.last >= self.seconds

    def draw(self, content, raw: bool = False) -> None:
        """Replace what is shown.  raw: ``content`` is {MIME type: data}."""
        if self.handle:
            self.handle.update(content, raw=raw)
        elif in_notebook():
            from IPython.display import display

            self.handle = display(content, raw=raw, display_id=True)
        self.last = time.monotonic()


class Line:
    """A line of text, updated at most twice a second, after ``wait`` seconds; a log file gets the ``last`` one."""

    def __init__(self, wait: float = 0.0):
        self.display, self.width, self.visible = Display(0.5), 0, False
        self.display.last = time.monotonic() - 0.5 + wait

    def show(self, text: str, last: bool = False) -> None:
        if not (last or self.display.due()):
            return
        self.visible = True
        self.display.draw({"text/plain": text}, raw=True)
        terminal = sys.stdout.isatty()
        if not in_notebook() and (last or terminal):
            print(f"\r{text:{self.width}}" if terminal else text, end="\n" if last else "", flush=True)
            self.width = len(text)
