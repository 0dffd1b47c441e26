"""Which code produced a run."""

import subprocess
from pathlib import Path

from src.core.files import write_text

PROJECT_ROOT = Path(__file__).resolve().parents[2]
SUBMODULES = ("src/third_party/ilora", "src/third_party/dllm2rec")


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(PROJECT_ROOT), *args],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def git_commit() -> str:
    """The commit of the working tree, with `-dirty` if tracked files differ; `unknown` outside git."""
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return "unknown"
    changed = _git("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all")
    return commit + ("-dirty" if changed else "")


def save_git_info(run_dir: Path) -> str:
    """Write `git_info.txt` (our commit and the pinned submodule commits) and return our commit."""
    commit = git_commit()
    lines = [commit]
    for path in SUBMODULES:
        entry = _git("ls-files", "--stage", path)
        lines.append(f"{path} {entry.split()[1] if entry else 'unknown'}")
    write_text(run_dir / "git_info.txt", "\n".join(lines) + "\n")
    return commit
