"""Which folder a training goes to: changed code, data or settings train, and nothing is ever overwritten."""

import subprocess
import sys

import pytest
import yaml

from helpers import versions
from helpers.checkpoints import TrainingError
from helpers.evaluation import evaluate
from helpers.results import report
from helpers.training import fit
from helpers.versions import find_folder
from tests.toy import BATCHES, Toy, ToyModel, make_run, stopped

pytestmark = pytest.mark.usefixtures("no_figures")
IDENTITY = {"epochs": 3, "code_fingerprint": "c", "data_fingerprint": "d"}
# its loss is edited; the class has the same name, as in a notebook
EDITED = type("ToyModel", (ToyModel,), {"weighted_sum": lambda self, losses: 2 * losses["reconstruction"]})


def train(run, model=None, data=None, **options):
    return fit(model or ToyModel(epochs=1), data or Toy(), run, show=False, **options)


def test_what_is_trained_already_is_loaded_with_one_line(tmp_path, capsys):
    first = train(make_run(tmp_path))
    for run in (make_run(tmp_path), first.run):  # after a new start, and in the same kernel
        capsys.readouterr()
        again = train(run, data=edited("test"))  # which no training sees
        assert again.folder == first.folder
        said = capsys.readouterr().out
        assert said.count("\n") == 1 and "already trained with these settings, data and code" in said
        assert all((a == b).all() for a, b in zip(again.model.parameters(), first.model.parameters(), strict=True))
        assert again.logger is not None, "interrupted before its report: that can still be written"


def edited(split):
    """One pixel of one image is another."""
    data = Toy()
    getattr(data, split).images[0, 0, 0, 0] += 1
    return data


CHANGES = {
    "code": (lambda: EDITED(epochs=1), Toy, "other code"),
    "settings": (lambda: ToyModel(epochs=1, lr=0.5), Toy, "other settings"),
    "images": (lambda: ToyModel(epochs=1), lambda: edited("train"), "other data"),
    "held-out images": (lambda: ToyModel(epochs=1), lambda: edited("validation"), "other data"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_trains_in_a_new_version_and_says_why(tmp_path, capsys, change):
    model, data, reason = CHANGES[change]
    run = make_run(tmp_path)
    first = train(run).folder
    before = (first / "model.ckpt").read_bytes()
    second = train(run, model(), data())
    assert second.folder.name == "version_11" and second.history["batches"] == BATCHES
    assert f"version_10 holds {reason}: a new version begins" in capsys.readouterr().out
    assert (first / "model.ckpt").read_bytes() == before
    assert train(make_run(tmp_path), model(), data()).folder == second.folder, "which is found again"


def test_resume_false_trains_again(tmp_path, capsys):
    run = make_run(tmp_path)
    assert [train(run, resume=resume).folder.name for resume in (True, False)] == ["version_10", "version_11"]
    assert "this training, which was not to be resumed" in capsys.readouterr().out
    assert train(make_run(tmp_path), resume=False).folder.name == "version_12"


def test_once_reported_the_same_call_makes_a_new_version(tmp_path):
    run = make_run(tmp_path)
    first = train(run)
    report(evaluate(first.model, Toy()), first)
    assert train(make_run(tmp_path)).folder.name == "version_11", "a new kernel"
    assert train(run).folder.name == "version_12", "and the one that reported"


def test_a_kernel_lost_in_the_7th_of_nine_trainings_finds_six_and_continues_the_7th(tmp_path, capsys):
    """The one without a name comes in between, as in notebook 4; the others are reported already."""
    names = ["autoencoder", "soft", "seed_1", "seed_2", "", "a", "b", "c", "d"]
    run = make_run(tmp_path)
    for name in names[:6]:
        found = train(run, ToyModel(epochs=2), name=name)
        if name:
            report(evaluate(found.model, Toy()), found)
    with pytest.raises(RuntimeError, match="stopped"):
        train(run, stopped(ToyModel(epochs=2), 4), name=names[6], checkpoint_seconds=0)
    capsys.readouterr()
    later = make_run(tmp_path)
    folders = [train(later, ToyModel(epochs=2), name=name).folder for name in names]
    assert {folder.relative_to(run.version).as_posix() for folder in folders} == {name or "." for name in names}
    said = capsys.readouterr().out
    assert said.count("already trained") == 6
    assert said.count("continuing .../b after batch 4 of 12") == 1


def find(folder, name="", run=None, **changes):
    """The folder of a training, as a new kernel finds it, or a ``run`` that goes on."""
    return find_folder(run or make_run(folder), name, IDENTITY | changes, resume=True)


def test_versions_start_after_the_committed_ones_and_count_up(tmp_path):
    first = find(tmp_path)
    assert first.name == "version_10" and yaml.safe_load((first / "hparams.yaml").read_text()) == IDENTITY
    for name in ("version_31", "version_x"):
        first.with_name(name).mkdir()
    assert find(tmp_path, epochs=4).name == "version_32"


def test_further_trainings_are_sub_folders_with_their_own_settings(tmp_path, run):
    main = find(tmp_path, run=run)
    assert find(tmp_path, "slow", run, epochs=9) == main / "slow"
    assert versions.read_hparams(main / "slow")["epochs"] == 9
    assert find(tmp_path, "slow", run, epochs=8).parent.name == "version_11"
    for name in ("../elsewhere", "a/b", "a b", "."):
        with pytest.raises(ValueError, match="a name is letters, digits"):
            find(tmp_path, name)


def test_a_reference_run_has_the_version_it_names_and_never_resumes_another(tmp_path, run, monkeypatch):
    find(tmp_path)
    monkeypatch.setenv("AD_VERSION", "0")
    assert find(tmp_path, run=run).name == find(tmp_path, run=run).name == "version_0"
    with pytest.raises(TrainingError, match="version_0 exists: no run is overwritten"):
        find(tmp_path)
    monkeypatch.setenv("AD_VERSION", "next")
    with pytest.raises(ValueError, match="number of a version"):
        find(tmp_path)


def test_two_that_claim_at_once_get_two_versions(tmp_path, monkeypatch):
    find(tmp_path)
    real, calls = versions.numbered, []
    monkeypatch.setattr(versions, "numbered", lambda logs: calls.append(1) or ({} if len(calls) == 2 else real(logs)))
    assert find(tmp_path, epochs=4).name == "version_11"


def test_a_version_that_another_process_trains_is_not_continued(tmp_path):
    mine = tmp_path / "logs" / "version_10"
    mine.mkdir(parents=True)
    (mine / "hparams.yaml").write_text(yaml.safe_dump(IDENTITY))
    code = "import filelock, sys; one = filelock.FileLock(sys.argv[1]); one.acquire(); print(flush=True); input()"
    command = [sys.executable, "-c", code, mine / ".lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        other.stdout.readline()
        assert find(tmp_path).name == "version_11"
        other.communicate("\n")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: [1, 2", b"!!python/object:os.system {}", b"words", None])
def test_a_neighbour_that_cannot_be_read_does_not_block(tmp_path, content):
    """None: its hparams.yaml is a folder, which as little can be opened as a file that is closed to us."""
    hparams = tmp_path / "logs" / "version_12" / "hparams.yaml"
    hparams.parent.mkdir(parents=True)
    hparams.mkdir() if content is None else hparams.write_bytes(content)
    assert find(tmp_path).name == "version_13"


def test_a_log_folder_that_cannot_be_made_is_one_clear_error(run):
    run.logs_dir.write_text("a file where the folder should be")
    with pytest.raises(TrainingError, match="cannot write to .*: make room or set AD_LOGS_DIR"):
        train(run)
