"""Progress in sight, in a notebook and in a terminal."""

import io
import sys
import types

import pytest

from helpers import progress
from helpers.progress import Display, Line, in_notebook
from helpers.training import fit
from tests.toy import Toy, ToyModel


@pytest.fixture
def kernel(monkeypatch):
    """A notebook whose clock stands still: what it shows, and ``now``."""
    found = types.SimpleNamespace(now=100.0, shown=[], updated=[])
    handle = types.SimpleNamespace(update=lambda content, raw: found.updated.append(content["text/plain"]))

    def display(content, raw, display_id):
        found.shown.append(content["text/plain"])
        return handle

    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    monkeypatch.setattr(progress.time, "monotonic", lambda: found.now)
    monkeypatch.setattr("IPython.display.display", display)
    return found


def test_a_line_is_updated_twice_a_second_at_most_and_its_last_text_always(kernel):
    line = Line()
    for tenth in range(30):
        kernel.now = 100 + tenth / 10
        line.show(f"batch {tenth}")
    line.show("done", last=True)
    assert kernel.shown == ["batch 0"], "one place in the output"
    assert kernel.updated == [*(f"batch {tenth}" for tenth in (5, 10, 15, 20, 25)), "done"]


def test_a_log_file_gets_only_the_last_text_and_no_figure(capsys, monkeypatch):
    shell = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    assert not in_notebook(), "a plain IPython shell shows none"
    line = Line()
    line.show("batch 1")
    line.show("done", last=True)
    Display(0).draw("a figure")
    assert capsys.readouterr().out == "done\n"


def test_a_terminal_gets_one_line_without_remains_of_a_longer_one(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", screen)
    line = Line()
    line.show("a long text")
    line.show("short", last=True)
    assert screen.getvalue() == "\ra long text\rshort      \n"


def test_the_line_of_a_training_names_epoch_batch_speed_time_left_and_losses(run, kernel, no_figures):
    fit(ToyModel(), Toy(), run, show=False)
    (text,) = kernel.shown
    assert text.startswith("epoch 1/3, batch 6/18, ")
    assert " images/s, 00:0" in text and " left; reconstruction 0." in text
    assert kernel.updated[-1].startswith("trained on 216 images in ")
