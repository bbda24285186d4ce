"""The first cell of every notebook, run as Colab would: alone in an empty folder."""

import os
import subprocess
import sys
import zipfile

import pytest

from helpers import bootstrap
from tests.conftest import ROOT
from tools import notebooks


@pytest.fixture
def clone(tmp_path):
    """A local repository with the files of this working tree, to be cloned from."""
    source = tmp_path / "course"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if name.startswith(("helpers/", "requirements.txt")) and (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], cwd=source, check=True)
    return source


def run_cell(folder, repository):
    code = notebooks.set_up_cell().replace(notebooks.address(), str(repository))
    code += "\nimport helpers.runtime\nprint(Path(helpers.runtime.__file__).parents[1])"
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)


def test_alone_in_an_empty_folder_it_fetches_the_course(tmp_path, clone):
    folder = tmp_path / "content"
    folder.mkdir()
    fetched = folder / notebooks.address().rsplit("/", 1)[1]
    (folder / f"{fetched.name}.part").mkdir()  # what a connection lost while cloning leaves behind
    for _ in range(2):  # the second time it finds what the first has fetched
        result = run_cell(folder, clone)
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines()[-1] == str(fetched)
        assert [path.name for path in folder.iterdir()] == [fetched.name]


def test_an_owner_may_be_called_name(monkeypatch):
    monkeypatch.setattr(notebooks, "address", lambda: "https://github.com/NAMELESS/course")
    assert 'REPOSITORY = "https://github.com/NAMELESS/course"' in notebooks.set_up_cell()
    assert 'fetched = here / "course"' in notebooks.set_up_cell()


def test_inside_the_course_it_fetches_nothing(tmp_path):
    result = run_cell(ROOT / "notebooks", tmp_path / "nowhere")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == str(ROOT)


def test_unreachable_repository_is_one_clear_error(tmp_path):
    result = run_cell(tmp_path, tmp_path / "nowhere")
    assert result.returncode != 0
    assert "could not fetch the course" in result.stderr
    assert not list(tmp_path.iterdir())


def wheel(folder, name, version, needs=""):
    """A real, empty wheel."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + (
        f"Requires-Dist: {needs}\n" if needs else ""
    )
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


def installed(python):
    """{name: version} of an environment, by the bootstrap's own means."""
    code = "from importlib.metadata import distributions as d; print({x.name: x.version for x in d()})"
    return eval(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.fixture
def environment(tmp_path):
    """An environment with shared 1.0 installed, and an index that holds shared 2.0 beside the packages wanted."""
    import venv

    venv.create(tmp_path / "env", with_pip=True)
    index = tmp_path / "index"
    index.mkdir()
    wheel(index, "shared", "1.0")
    wheel(index, "shared", "2.0")
    wheel(index, "modest", "1.0", "shared>=1.0")
    wheel(index, "greedy", "1.0", "shared>=2.0")
    variables = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": os.devnull}
    variables.pop("PIP_EXTRA_INDEX_URL", None)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "shared==1.0"], env=variables, check=True)

    def add(*names):
        code = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
            "from pathlib import Path; from helpers import bootstrap\n"
            f"bootstrap.REQUIREMENTS = Path({str(tmp_path / 'requirements.txt')!r}); bootstrap.NEEDED = {names!r}\n"
            "bootstrap.install_missing()"
        )
        (tmp_path / "requirements.txt").write_text("# a comment\n\nshared>=2.0\nmodest>=0.5\ngreedy>=1.0\n")
        return subprocess.run([python, "-c", code], env=variables, capture_output=True, text=True), installed(python)

    return add


def test_missing_packages_are_added_and_installed_ones_never_upgraded(environment):
    result, now = environment("shared", "modest")
    assert result.returncode == 0, result.stderr
    assert "added: modest 1.0" in result.stdout
    assert (now["shared"], now["modest"]) == ("1.0", "1.0"), "shared is older than we ask for, and must stay so"


def test_local_versions_are_pinned_too(environment, tmp_path):
    """Colab's torch is 2.x+cu128: the one package that must not move."""
    info = next((tmp_path / "env").glob("lib/*/site-packages/shared-1.0.dist-info"))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shared\nVersion: 1.0+cu128\n")
    result, now = environment("greedy")
    assert result.returncode != 0
    assert now["shared"] == "1.0+cu128"
    assert environment("modest")[0].returncode == 0


def test_a_package_that_needs_an_upgrade_is_refused(environment):
    result, now = environment("greedy")
    assert result.returncode != 0
    assert "could not add greedy>=1.0 without changing installed packages" in result.stderr
    assert now["shared"] == "1.0"
    assert "greedy" not in now


def test_everything_needed_is_named_in_requirements():
    lines = (ROOT / "requirements.txt").read_text()
    assert all(f"\n{name}>=" in lines for name in bootstrap.NEEDED)
    assert bootstrap.missing() == [], "the test environment has everything"
