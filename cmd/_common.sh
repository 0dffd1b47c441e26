# shellcheck shell=bash
# Prelude of every script in cmd/: sourced, never run. Goes to the project root and sets the environment up.

PROJECT_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly PROJECT_ROOT
cd "$PROJECT_ROOT" || exit

say() { printf '%s\n' "$@" >&2; }
die() {
    say "error: $*"
    exit 1
}

# The comment at the top of a script is its help.
print_help() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$PROJECT_ROOT/cmd/${0##*/}"; }

# Makes `poetry` the private one where cmd/install.sh has built it. env_shell/default.sh does so too, but may be replaced.
use_private_poetry() {
    if [[ -x $PROJECT_ROOT/.poetry/bin/poetry && $PATH != "$PROJECT_ROOT/.poetry/bin":* ]]; then
        PATH=$PROJECT_ROOT/.poetry/bin:$PATH
    fi
}

# Called by the scripts that run but do not install.
require_installed() {
    if [[ ! -x .venv/bin/python ]] || ! command -v poetry >/dev/null; then
        die "the project is not installed yet. Run: bash cmd/install.sh"
    fi
}

# A relative ENV_SHELL is relative to the project root. The absolute path keeps `source` from searching PATH.
env_shell=${ENV_SHELL:-env_shell/default.sh}
[[ $env_shell == /* ]] || env_shell=$PROJECT_ROOT/$env_shell
[[ -f $env_shell ]] || die "no file '$env_shell'. Set ENV_SHELL to an existing script, or unset it to use env_shell/default.sh"
set +u # conda's and module's scripts, which a site's file may call, read unset variables
# shellcheck source=env_shell/default.sh
source "$env_shell" || die "'$env_shell' failed"
set -u
use_private_poetry

# Always the project's .venv: Poetry would otherwise install into whatever environment is active.
unset VIRTUAL_ENV CONDA_PREFIX
export POETRY_VIRTUALENVS_CREATE=true POETRY_VIRTUALENVS_IN_PROJECT=true

# Nothing here asks questions: keep the lines of a caller's `while read` loop from being swallowed. A terminal stays, for pdb.
[[ -t 0 ]] || exec </dev/null
