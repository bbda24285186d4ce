"""What is generated in notebooks and README: the set-up cell and the Colab badges, from one address.

python tools/notebooks.py                  write badges and set-up cells for the address in pyproject.toml
python tools/notebooks.py OWNER/NAME       change the address first
"""

import json
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
BADGE_PATTERN = re.compile(
    r"\[!\[Open in Colab\]\(.*?\)\]\(https://colab\.research\.google\.com/github/[\w.-]+/[\w.-]+/blob/main/notebooks/([\w.-]+)\)"
)
ADDRESS_PATTERN = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+")
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
    if subprocess.run(["git", "clone", "--quiet", "--depth", "1", REPOSITORY, str(part)]).returncode:
        raise SystemExit(f"could not fetch the course from {{REPOSITORY}}: is there a network, and git?")
    course = part.rename(fetched)
sys.path.insert(0, str(course))

from helpers.bootstrap import install_missing

install_missing()"""


def address() -> str:
    """The repository's public address, from pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def notebooks() -> list[Path]:
    """All notebooks, in their order."""
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def trains(path: Path) -> bool:
    """Whether a notebook trains a model and so leaves a version; one that does not only reads versions."""
    cells = json.loads(path.read_text())["cells"]
    return any(cell["cell_type"] == "code" and re.search(r"\bfit\(", "".join(cell["source"])) for cell in cells)


def set_up_cell() -> str:
    """The source of the set-up cell for the present address."""
    return SET_UP.replace("NAME", address().rsplit("/", 1)[1]).replace("ADDRESS", address())


def badge(name: str) -> str:
    """The Colab badge of one notebook, in Markdown."""
    repository = address().removeprefix("https://github.com/")
    return (
        f"[![Open in Colab]({BADGE})](https://colab.research.google.com/github/{repository}/blob/main/notebooks/{name})"
    )


def refresh() -> None:
    """Write the set-up cell and the badges everywhere for the address in pyproject.toml."""
    for path in notebooks():
        book = json.loads(path.read_text())
        for cell in book["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code" and source.startswith(MARK):
                cell["source"] = set_up_cell().splitlines(keepends=True)
            elif cell["cell_type"] == "markdown" and BADGE_PATTERN.search(source):
                source = BADGE_PATTERN.sub(lambda found: badge(found.group(1)), source)
                cell["source"] = source.splitlines(keepends=True)
        path.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n")
    readme = ROOT / "README.md"
    text = BADGE_PATTERN.sub(lambda found: badge(found.group(1)), readme.read_text())
    name = address().rsplit("/", 1)[1]
    readme.write_text(re.sub(r"git clone \S+ && cd \S+", f"git clone {address()} && cd {name}", text))


def change(repository: str) -> None:
    """Set the address to ``owner/name`` and rewrite everything that holds it."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", repository) is None:
        raise SystemExit(f"an address has the form owner/name: got {repository!r}")
    project = ROOT / "pyproject.toml"
    project.write_text(ADDRESS_PATTERN.sub(f"https://github.com/{repository}", project.read_text()))
    refresh()


if __name__ == "__main__":
    change(sys.argv[1]) if len(sys.argv) > 1 else refresh()
