"""The code of a notebook, without running it."""

import ast
import functools
import json
from contextlib import suppress
from pathlib import Path

DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)


@functools.cache
def definitions(path: Path) -> dict:
    """Imports, functions, classes and literal CONSTANTS of a notebook, executed: so tests use its very model."""
    scope: dict = {"__name__": path.stem}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            for node in ast.parse("".join(cell["source"])).body:
                if isinstance(node, DEFINITIONS) or _is_constant(node, scope):
                    with suppress(NameError):  # a function of the course of the notebook, not of its model
                        exec(compile(ast.Module([node], []), str(path), "exec"), scope)
    return scope


def _is_constant(node: ast.stmt, scope: dict) -> bool:
    """Whether a statement gives a NAME in capitals a value made of literals and of such names."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
    if not targets or not all(isinstance(target, ast.Name) and target.id.isupper() for target in targets):
        return False
    parts = list(ast.walk(node.value))
    known = all(part.id in scope for part in parts if isinstance(part, ast.Name))
    return known and not any(isinstance(part, (ast.Call, ast.Attribute)) for part in parts)
