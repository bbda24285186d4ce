"""A fingerprint of a model's code, so that an edited loss is trained and not taken for the one before."""

import dis
import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType

import numpy as np
import torch

LIBRARIES = tuple(str(Path(sysconfig.get_paths()[name]).resolve()) for name in ("stdlib", "purelib", "platlib"))
LIBRARIES += (str(Path(__file__).resolve().parent),)


def code_fingerprint(model: torch.nn.Module) -> str:
    """Changes with the model's classes and with the notebook's functions and constants that they use.

    Names that the code reads from its module are followed; of libraries and ``helpers`` only the names count.
    Bytecode is compared: comments and docstrings do not count, another version of Python does.
    """
    parts = _parts(list(dict.fromkeys(type(module) for module in model.modules())), set())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _parts(value, seen: set[int]) -> Iterator[str]:
    """What makes up a value, each function and class once."""
    if isinstance(value, property):
        value = (value.fget, value.fset)
    elif isinstance(value, partial):
        value = (value.func, value.args, value.keywords)
    elif not isinstance(value, FunctionType):  # a decorated function leads to its own through its closure
        value = inspect.unwrap(value)
    if isinstance(value, (bool, int, float, complex, str, bytes, type(None), type(...))):
        yield repr(value)
    elif isinstance(value, (tuple, list, dict)):
        yield type(value).__name__
        for item in value.items() if isinstance(value, dict) else value:
            yield from _parts(item, seen)
    elif isinstance(value, (set, frozenset)):  # whose order differs from process to process
        yield repr(sorted(map(repr, value)))
    elif isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        yield repr((value.dtype, value.tolist()))
    elif callable(value) and id(value) not in seen:
        seen.add(id(value))
        module = sys.modules.get(getattr(value, "__module__", None) or "builtins")  # None of executed cells
        if module and module.__name__ != "__main__" and _is_library(getattr(module, "__file__", None)):
            yield getattr(value, "__qualname__", type(value).__name__)
        elif isinstance(value, type):
            yield from _parts(value.__mro__[1:], seen)
            for name, attribute in vars(value).items():
                if not name.startswith("__") or isinstance(attribute, FunctionType):
                    yield from _parts((name, attribute), seen)
        elif isinstance(value, FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            yield from _parts((value.__defaults__, value.__kwdefaults__, cells), seen)
            if not _is_library(value.__code__.co_filename):  # as of torch.no_grad
                yield from _code(value.__code__, value.__globals__, seen)


def _code(code: CodeType, scope: dict, seen: set[int]) -> Iterator[str]:
    """The instructions with what they name: a docstring is never loaded, so it does not count."""
    yield repr(code.co_varnames)
    for step in dis.get_instructions(code):
        yield step.opname
        if isinstance(step.argval, CodeType):  # a function, lambda or comprehension inside
            yield from _code(step.argval, scope, seen)
        else:
            yield from _parts(step.argval, seen)
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield from _parts(scope.get(step.argval), seen)


def _is_library(file: str | None) -> bool:
    """Whether a file is of an installed package, of ``helpers`` or of Python itself, parts of which have no file."""
    return file is None or str(Path(file).resolve()).startswith(LIBRARIES)
