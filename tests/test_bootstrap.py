"""The first cell of every notebook, run as Colab would: alone in an empty folder."""

import ensurepip
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from helpers import bootstrap
from tests.toy import ROOT
from tools import notebooks


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A local repository with the helpers of this working tree, to be cloned from."""
    source = tmp_path_factory.mktemp("course")
    shutil.copytree(ROOT / "helpers", source / "helpers")
    shutil.copy(ROOT / "requirements.txt", source)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in ("init -q", "add -A", "commit -q -m x"):
        subprocess.run([*git, *command.split()], cwd=source, check=True)
    return source


def run_cell(folder, repository):
    code = notebooks.set_up_cell().replace(notebooks.address(), str(repository))
    code += "\nimport helpers.bootstrap\nprint(Path(helpers.bootstrap.__file__).parents[1])"
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)


def test_alone_in_an_empty_folder_it_fetches_the_course(tmp_path, repository):
    fetched = tmp_path / notebooks.address().rsplit("/", 1)[1]
    (tmp_path / f"{fetched.name}.part").mkdir()  # what a connection lost while cloning leaves behind
    for _ in range(2):  # the second time it finds what the first has fetched
        result = run_cell(tmp_path, repository)
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines()[-1] == str(fetched)
        assert [path.name for path in tmp_path.iterdir()] == [fetched.name]


def test_an_unreachable_repository_is_one_clear_error_but_not_inside_of_the_course(tmp_path):
    assert run_cell(ROOT / "notebooks", tmp_path / "nowhere").stdout.splitlines()[-1] == str(ROOT)
    result = run_cell(tmp_path, tmp_path / "nowhere")
    assert result.returncode != 0
    assert "could not fetch the course" in result.stderr
    assert not list(tmp_path.iterdir())


def wheel(folder, name, version, needs=""):
    """A real, empty wheel."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def test_missing_packages_are_added_and_installed_ones_never_upgraded(tmp_path):
    """Installed is shared 1.0 (a local version, as Colab's torch); the index has shared 2.0, and more."""
    venv.create(tmp_path / "env", with_pip=False)
    (packages,) = (tmp_path / "env").glob("lib/*/site-packages")
    (pip,) = (Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl")
    (packages / "pip.pth").write_text(str(pip))
    (packages / "shared-1.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: shared\nVersion: 1.0+cu128\n"
    # with a RECORD pip could remove it
    for name, content in (("METADATA", metadata), ("RECORD", "shared-1.0.dist-info/METADATA,,\n")):
        (packages / "shared-1.0.dist-info" / name).write_text(content)
    wheel(tmp_path, "shared", "2.0")
    wheel(tmp_path, "modest", "1.0", "Requires-Dist: shared>=1.0\n")
    wheel(tmp_path, "greedy", "1.0", "Requires-Dist: shared>=2.0\n")
    (tmp_path / "requirements.txt").write_text("# a comment\n\nshared>=2.0  # why\nmodest>=0.5\ngreedy>=1.0\n")
    variables = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}

    def add(*names):
        """The process that adds these packages, and {name: version} afterwards."""
        code = (
            "from pathlib import Path; from helpers import bootstrap; from importlib.metadata import distributions\n"
            f"bootstrap.REQUIREMENTS = Path({str(tmp_path / 'requirements.txt')!r}); bootstrap.NEEDED = {names!r}\n"
            "try:\n    bootstrap.install_missing()\n"
            "finally:\n    print({found.name: found.version for found in distributions()})"
        )
        command, environment = [tmp_path / "env" / "bin" / "python", "-c", code], variables | {"PYTHONPATH": str(ROOT)}
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        return result, eval(result.stdout.splitlines()[-1])

    result, now = add("shared", "modest")
    assert "added: modest 1.0" in result.stdout, result.stderr
    assert (now["shared"], now["modest"]) == ("1.0+cu128", "1.0"), "shared is older than we ask for, and must stay so"
    result, now = add("greedy")
    assert "could not add greedy>=1.0 without changing installed packages" in result.stderr
    assert now["shared"] == "1.0+cu128" and "greedy" not in now


def test_everything_needed_is_named_in_requirements_and_installed_here():
    lines = (ROOT / "requirements.txt").read_text()
    assert all(f"\n{name}>=" in f"\n{lines}" for name in bootstrap.NEEDED)
    assert bootstrap.missing() == []
