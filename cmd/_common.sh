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

# attend COMMAND...: runs a command and takes it along when Ctrl-C or SIGTERM ends this script. Bash alone would wait for the
# command, or leave it behind. It begins with Ctrl-C ignored, as whatever runs in the background: Poetry would show a stack
# trace, our own commands take it all the same, once they can say how to go on.
way_on='the line above says how to go on; if there is none, start the same command again'
attend() {
    local code=0
    child='' stopped=''
    trap 'stop 130' INT
    trap 'stop 143' TERM
    ATTENDED=yes "$@" <&0 &
    child=$!
    if [[ -n $stopped ]]; then # before there was a child
        stop "$stopped"
    fi
    while wait "$child" 2>/dev/null || code=$?; [[ -n $stopped ]] && kill -0 "$child" 2>/dev/null; do
        code=0
    done
    trap - INT TERM
    if [[ -n $stopped ]]; then
        code=$stopped
    fi
    if ((code == 130 || code == 143)); then
        say "error: stopped; $way_on"
        exit "$code"
    fi
    return "$code"
}

stop() { # stop CODE: what the signals do while a command is attended; what does not end then is killed
    stopped=${stopped:-$1}
    if [[ -n $child ]]; then
        kill -TERM "$child" 2>/dev/null || true
        (sleep 2 && kill -KILL "$child") <&- >&- 2>&- &
    fi
}

# run_module MODULE ARGUMENTS...: a stage. One that another script attends already becomes the process that is attended.
run_module() {
    if [[ -n ${ATTENDED:-} ]]; then
        exec poetry run python -m "$@"
    fi
    attend poetry run python -m "$@"
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
