"""What counts as another code, and what does not."""

import os
import subprocess
import sys

import pytest

from helpers.fingerprint import code_fingerprint
from tests.toy import ROOT

NOTEBOOK = """
import torch
from functools import partial
from torch import nn
MARGIN = 0.25
TABLE = {"sizes": (3, 5), "names": {"b", "a", "c"}}
USUAL = torch.tensor([1.0, 2.0])
UNUSED = 1

def halve(x):
    return x / 2
def push(x, far=4.0):
    total = sum(0.5 * part for part in x)
    return torch.relu(MARGIN - halve(x)) * total * far * USUAL[0]
push_far = partial(push, far=8.0)
def reads_table(x):
    return TABLE["sizes"][0] * x if "a" in {"a", "b"} else x
def not_used(x):
    return x
class Block(nn.Module):
    slope = 0.2
    @staticmethod
    def squash(x):
        return torch.tanh(x)
class Base(nn.Module):
    'A tail.'
    @property
    def width(self):
        return 8
class Model(Base):
    def __init__(self):
        super().__init__()
        self.block = Block()
    @torch.no_grad()
    def score(self, x):
        return push_far(x) + self.loss(x)
    def loss(self, x):
        def inner(y):
            return y * 3
        return [push(inner(x)), reads_table(x), (lambda z: z + 1)(x)]
    def step(self, x):
        self.loss(x)
"""


def fingerprint(source: str) -> str:
    scope = {"__name__": "__main__"}
    exec(compile(source, "<cell>", "exec"), scope)
    return code_fingerprint(scope["Model"]())


EDITS = [
    ("x / 2", "x / 3"),  # a function that a function of the loss calls
    ("MARGIN = 0.25", "MARGIN = 0.3"),
    ("0.5 * part", "0.6 * part"),
    ("far=8.0", "far=9.0"),
    ('"c"}', '"d"}'),
    ("[1.0, 2.0]", "[1.0, 3.0]"),
    ("[1.0, 2.0]", "[1.0, 2.0], dtype=torch.bfloat16"),
    ('in {"a", "b"}', 'in {"a", "z"}'),
    ("slope = 0.2", "slope = 0.1"),
    ("torch.tanh(x)", "torch.sigmoid(x)"),
    ("return 8", "return 9"),
    ("y * 3", "y * 4"),
    ("self.block = Block()", "self.block = nn.Identity()"),
    ("    @torch.no_grad()\n", ""),
    ("relu(MARGIN - halve(x))", "relu(halve(x) - MARGIN)"),
    ("        self.loss(x)\n", "        self.loss(x)\n        self.loss(x)\n"),
]
NO_EDITS = [
    ("UNUSED = 1", "UNUSED = 2"),
    ("def not_used(x):\n    return x", "def not_used(x):\n    return 7"),
    ("MARGIN = 0.25", "MARGIN = 0.25  # of the error\n"),
    ("    return x / 2", '    """Half."""\n    return x / 2'),
    ("A tail.", "Another docstring."),
    ("class Block(nn.Module):\n", 'class Block(nn.Module):\n    """A block."""\n'),
    ("    def step(self, x):\n", '    def step(self, x):\n        """Ends without a return."""\n'),
    ("        def inner(y):\n", '        def inner(y):\n            """Inside."""\n'),
    ("x / 2", "(\n        x  # the image\n        / 2\n    )"),
    ('"b", "a", "c"', '"c", "b", "a"'),
    ("\nMARGIN", "\n\n\n\n\nimport os\n\nMARGIN"),
]


@pytest.mark.parametrize(("old", "new"), EDITS + NO_EDITS)
def test_only_an_edit_that_the_model_uses_counts(old, new):
    """Comments, docstrings, formatting and unused code do not."""
    assert NOTEBOOK.count(old) == 1
    assert (fingerprint(NOTEBOOK.replace(old, new)) != fingerprint(NOTEBOOK)) == ((old, new) in EDITS)


def test_it_is_the_same_in_every_process(tmp_path):
    script = tmp_path / "cells.py"
    code = "\nfrom helpers.fingerprint import code_fingerprint\nprint(code_fingerprint(Model()))"
    script.write_text(NOTEBOOK + code)
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        printed = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True).stdout
        assert printed.strip() == fingerprint(NOTEBOOK)
