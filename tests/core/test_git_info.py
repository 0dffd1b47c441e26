"""Which code produced a run, in a repository made for the test."""

import subprocess

import pytest

from src.core import git_info
from src.core.git_info import SUBMODULES, git_commit, save_git_info

PIN = "1" * 40


@pytest.fixture
def repository(tmp_path, monkeypatch):
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.setattr(git_info, "PROJECT_ROOT", folder)
    # Nothing of the machine's own configuration, and nothing of a repository around this one.
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    return folder


def git(folder, *args: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@localhost"]
    done = subprocess.run(["git", "-C", folder, *identity, *args], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit_file(folder) -> str:
    git(folder, "init", "-q")
    (folder / "file.txt").write_text("one\n")
    git(folder, "add", "file.txt")
    git(folder, "update-index", "--add", "--cacheinfo", f"160000,{PIN},{SUBMODULES[0]}")
    git(folder, "commit", "-q", "-m", "one")
    return git(folder, "rev-parse", "HEAD")


def test_commit_clean_and_dirty(repository):
    commit = commit_file(repository)
    (repository / "untracked.txt").write_text("does not count\n")
    assert git_commit() == commit

    (repository / "file.txt").write_text("two\n")
    assert git_commit() == f"{commit}-dirty"


def test_outside_git(repository, tmp_path):
    assert git_commit() == "unknown"
    assert save_git_info(tmp_path / "run") == "unknown"
    assert (tmp_path / "run" / "git_info.txt").read_text().splitlines()[0] == "unknown"


def test_without_the_git_program(repository, monkeypatch):
    commit_file(repository)
    monkeypatch.setenv("PATH", "")
    assert git_commit() == "unknown"


def test_file_names_our_commit_and_the_pinned_submodules(repository, tmp_path):
    commit = commit_file(repository)

    assert save_git_info(tmp_path / "run") == commit

    assert (tmp_path / "run" / "git_info.txt").read_text().splitlines() == [
        commit,
        f"{SUBMODULES[0]} {PIN}",
        f"{SUBMODULES[1]} unknown",
    ]
