import subprocess
import sys

import pytest
import torch

from cityseg.environment import environment


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout of one file, as the working directory."""
    monkeypatch.chdir(tmp_path)
    git("init")
    (tmp_path / "train.py").write_text("1")
    git("add", "train.py")
    git("-c", "user.name=n", "-c", "user.email=e", "commit", "-m", "one")
    git("tag", "v1-dirty")
    return tmp_path


def git(*arguments):
    return subprocess.run(("git", *arguments), capture_output=True, text=True, check=True).stdout.strip()


def test_versions_and_device_are_those_of_this_process():
    found = environment(torch.device("cpu"))
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["torch"] == torch.__version__
    assert found["device"].startswith("CPU, ")
    assert all(found[key] for key in ("pytorch_lightning", "cityseg", "platform"))


def test_commit_is_that_of_the_working_directory_and_says_whether_it_was_changed(checkout):
    (checkout / "outputs").write_text("files that git does not know are no change")
    found = environment()
    assert (found["git_commit"], found["git_dirty"]) == (git("rev-parse", "HEAD"), False)
    (checkout / "train.py").write_text("2")
    assert environment()["git_dirty"] is True
    assert environment()["git_commit"] == found["git_commit"]


def test_there_is_no_commit_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment()["git_commit"] is environment()["git_dirty"] is None


def test_git_need_not_be_installed(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment()["git_commit"] is None
