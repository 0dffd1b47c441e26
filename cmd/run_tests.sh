#!/usr/bin/env bash
# Installs, then checks everything: the scripts' syntax, ruff, black, mypy, pytest with the examples in docstrings. Runs
# all of them; fails if any failed.
#
#   bash cmd/run_tests.sh
#   bash cmd/run_tests.sh -k metrics -x
#   bash cmd/run_tests.sh --cov=src
#
# Every argument goes to pytest, which runs in as many processes as there are cores, 4 at most (-n 0: in one).
set -euo pipefail
# shellcheck source=cmd/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

bash cmd/install.sh
use_private_poetry # it may be new

failed=()
check() {
    local name=$1
    shift
    say "=== $name"
    "$@" || failed+=("$name")
}

check_scripts() {
    local script code=0
    for script in cmd/*.sh env_shell/*.sh .ci/run; do
        bash -n "$script" || code=1
    done
    return "$code"
}

# Run as modules: Poetry's launchers hold the absolute path of .venv and break when the project folder is moved.
check "bash -n" check_scripts
check "ruff" poetry run python -m ruff check --extend-exclude .poetry,.cache . # outside git, ruff reads no .gitignore
check "black" poetry run python -m black --check .
check "mypy" poetry run python -m mypy
# In the order of their names the long files come before the many short ones, so that no process is left with one at the end.
check "pytest" poetry run python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"

if ((${#failed[@]} > 0)); then
    die "failed: $(printf '%s, ' "${failed[@]}" | sed 's/, $//')"
fi
