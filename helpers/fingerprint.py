"""A fingerprint of a model's code, so that an edited loss is trained and not taken for the one before."""

import dis
import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType

import numpy as np
import torch

LIBRARIES = tuple(str(Path(sysconfig.get_paths()[name]).resolve()) for name in ("stdlib", "purelib", "platlib"))
LIBRARIES += (str(Path(__file__).resolve().parent),)
PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...))


def code_fingerprint(model: torch.nn.Module) -> str:
    """Changes with the model's classes and with the notebook's functions and constants that they use.

    Followed are names that the code reads from its module, and so on from there; libraries and ``helpers`` are
    left out.  Comments, docstrings and the place in the notebook do not count.  Python's bytecode is compared, so
    another version of Python gives another fingerprint.
    """
    digest, seen = hashlib.sha256(), set()
    for kind in dict.fromkeys(type(module) for module in model.modules()):
        for part in _parts(kind, seen):
            digest.update(part)
    return digest.hexdigest()[:16]


def _parts(value, seen: set[int]) -> Iterator[bytes]:
    """What makes up a value, as bytes, each function and class once."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if isinstance(value, property):
        value = (value.fget, value.fset)
    if isinstance(value, PLAIN):
        yield repr(value).encode()
    elif isinstance(value, (tuple, list, dict)):
        yield type(value).__name__.encode()
        for item in value.items() if isinstance(value, dict) else value:
            yield from _parts(item, seen)
    elif isinstance(value, (set, frozenset)):  # whose order differs from process to process
        yield repr(sorted(map(repr, value))).encode()
    elif isinstance(value, torch.Tensor):
        yield value.detach().cpu().numpy().tobytes()
    elif isinstance(value, np.ndarray):
        yield value.tobytes()
    elif callable(value) and id(value) not in seen:
        seen.add(id(value))
        value = inspect.unwrap(value)
        if _is_library(value):
            return
        if isinstance(value, type):
            for base in value.__mro__[1:]:
                yield from _parts(base, seen)
            for name, attribute in vars(value).items():
                if not name.startswith("__") or isinstance(attribute, FunctionType):
                    yield name.encode()
                    yield from _parts(attribute, seen)
        elif isinstance(value, FunctionType):
            yield from _parts((value.__defaults__, value.__kwdefaults__), seen)
            for cell in value.__closure__ or ():
                yield from _parts(cell.cell_contents, seen)
            yield from _code(value.__code__, value.__globals__, value.__doc__, seen)


def _code(code: CodeType, scope: dict, docstring: str | None, seen: set[int]) -> Iterator[bytes]:
    yield code.co_code
    yield repr((code.co_names, code.co_varnames)).encode()
    for constant in code.co_consts:
        if isinstance(constant, CodeType):  # a function, lambda or comprehension inside
            yield from _code(constant, scope, constant.co_consts[0] if constant.co_consts else None, seen)
        elif constant is None or constant != docstring:
            yield from _parts(constant, seen)
    used = (step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    for name in dict.fromkeys(used):
        yield from _parts(scope.get(name), seen)


def _is_library(value) -> bool:
    """Whether a class or function comes from an installed package, from Python itself or from ``helpers``."""
    module = sys.modules.get(getattr(value, "__module__", None) or "builtins")
    if module is None:  # the namespace of executed cells
        return False
    if module.__name__ == "__main__":
        return False
    file = getattr(module, "__file__", None)
    return file is None or str(Path(file).resolve()).startswith(LIBRARIES)
