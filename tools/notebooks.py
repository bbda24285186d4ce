"""What is generated in notebooks and README: the set-up cell and the Colab badges, from one address.

python tools/notebooks.py                  write badges and set-up cells for the address in pyproject.toml
python tools/notebooks.py OWNER/NAME       change the address first
"""

import ast
import json
import re
import sys
import tomllib
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COLAB = "https://colab.research.google.com"
BADGE = re.compile(r"\[!\[Open in Colab\]\(.*?\)\]\(" + re.escape(COLAB) + r"/github/.*?/notebooks/([\w.-]+)\)")
MARK = "# Set-up, the same in every notebook"
SET_UP = f"""{MARK}: find the course or fetch it, then add only what is missing.
import shutil
import subprocess
import sys
from pathlib import Path

KEEP_ON_DRIVE = False  # Colab: True keeps logs and checkpoints on your Google Drive
REPOSITORY = "ADDRESS"
here = Path.cwd()
fetched = here / "NAME"
course = next((p for p in (here, *here.parents, fetched) if (p / "helpers" / "bootstrap.py").exists()), None)
if course is None:
    part = fetched.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    command = ["git", "clone", "--quiet", "--depth", "1", REPOSITORY, str(part)]
    if shutil.which("git") is None or subprocess.run(command).returncode:
        raise SystemExit(f"could not fetch the course from {{REPOSITORY}}: is there a network, and git?")
    course = part.rename(fetched)
sys.path.insert(0, str(course))

from helpers.bootstrap import install_missing

install_missing()"""


def address() -> str:
    """The repository's public address, from pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def notebooks() -> list[Path]:
    """All notebooks, in their order."""
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def source(path: Path) -> str:
    """The code of a notebook."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def definitions(path: Path, **given) -> dict:
    """Imports, functions, classes and CONSTANTS of a notebook, executed with the names ``given``: its very models."""
    scope: dict = {"__name__": path.stem} | given
    for node in ast.parse(source(path)).body:
        names = getattr(node, "targets", [getattr(node, "target", None)])  # of = and of +=
        constant = all(isinstance(name, ast.Name) and name.id.isupper() for name in names)
        constant = constant and not any(isinstance(part, (ast.Call, ast.Attribute)) for part in ast.walk(node.value))
        if constant or isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)):
            with suppress(NameError):  # what needs a setting belongs to the run of the notebook, not to its model
                exec(compile(ast.Module([node], []), str(path), "exec"), scope)
    return scope


def set_up_cell() -> str:
    """The source of the set-up cell for the present address."""
    return SET_UP.replace("NAME", address().rsplit("/", 1)[1]).replace("ADDRESS", address())


def badge(name: str) -> str:
    """The Colab badge of one notebook, in Markdown."""
    link = f"{COLAB}/github/{address().removeprefix('https://github.com/')}/blob/main/notebooks/{name}"
    return f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({link})"


def refresh() -> None:
    """Write the set-up cell and the badges everywhere for the address in pyproject.toml."""
    for path in notebooks():
        book = json.loads(path.read_text(encoding="utf-8"))
        for cell in book["cells"]:
            text = "".join(cell["source"])
            text = set_up_cell() if text.startswith(MARK) else BADGE.sub(lambda found: badge(found[1]), text)
            cell["source"] = text.splitlines(keepends=True)
        path.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    readme, name = ROOT / "README.md", address().rsplit("/", 1)[1]
    text = BADGE.sub(lambda found: badge(found[1]), readme.read_text(encoding="utf-8"))
    text = re.sub(r"https://github\.com/\S+\ncd \S+", f"{address()}\ncd {name}", text)
    readme.write_text(text, encoding="utf-8")
    cited = ROOT / "CITATION.cff"
    text = re.sub(r"(repository-code: ).*", rf'\1"{address()}"', cited.read_text(encoding="utf-8"))
    cited.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        if re.fullmatch(r"[\w.-]+/[\w.-]+", sys.argv[1]) is None:
            raise SystemExit(f"an address has the form owner/name: got {sys.argv[1]!r}")
        project = ROOT / "pyproject.toml"
        project.write_text(project.read_text().replace(address(), f"https://github.com/{sys.argv[1]}"))
    refresh()
