#!/usr/bin/env bash
# Installs the project into .venv: Python 3.11 and a package index are all it needs. Does nothing when that is done already.
#
#   bash cmd/install.sh
#
# A Poetry 2 on PATH is used if it can install. Otherwise a private one is built in .poetry; nothing outside the project changes.
# Packages come from the index that pip is configured for.
set -euo pipefail
# shellcheck source=cmd/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

readonly POETRY_PINS=(poetry==2.5.1 poetry-plugin-pypi-mirror==0.6.5)
readonly STAMP=.venv/.installed POETRY_STAMP=.poetry/.installed

# What an installation depends on. The root is part of it: scripts and the editable install hold absolute paths.
# Kept whole, not hashed, so that no hashing tool has to exist.
fingerprint() { printf '%s\n' "$PROJECT_ROOT" && cat pyproject.toml poetry.lock; }
poetry_fingerprint() { printf '%s\n' "$PROJECT_ROOT" "${POETRY_PINS[@]}"; }

is_poetry_2() { [[ $(poetry --version 2>/dev/null) == *"version 2."* ]]; }

is_installed() {
    [[ -x .venv/bin/python && -f $STAMP ]] && cmp -s "$STAMP" <(fingerprint) && .venv/bin/python -c '' && is_poetry_2
}

is_private_poetry_built() {
    [[ -f $POETRY_STAMP ]] && cmp -s "$POETRY_STAMP" <(poetry_fingerprint) && .poetry/bin/poetry --version >/dev/null 2>&1
}

# Prints the first Python 3.11 on PATH. Each candidate is run: a version manager's shim may exist and yet not work. An activated
# environment answers with the Python that it was made from.
find_python() {
    local candidate
    while IFS= read -r candidate; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            "$candidate" -c 'import sys; print(sys._base_executable)'
            return
        fi
    done < <(type -aP python3.11 python3 python || true)
    die "Python 3.11 is not on PATH. Install it (Debian 12: apt install python3.11 python3.11-venv; pyenv: pyenv install 3.11)"
}

build_private_poetry() {
    local python=$1
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$python cannot make virtual environments. On Debian and Ubuntu: apt install python3.11-venv"
    say "Building a private Poetry in .poetry ..."
    rm -rf .poetry
    "$python" -m venv .poetry
    attend .poetry/bin/python -m pip install -qq --disable-pip-version-check --no-input --retries 10 "${POETRY_PINS[@]}" ||
        die "pip could not install Poetry. Check the network and 'pip config list', then run this again"
    poetry_fingerprint >"$POETRY_STAMP"
}

# The index as pip resolves it from its files, its variables and its default. `pip config get` knows no default.
pip_index() {
    .poetry/bin/python -c '
from pip._internal.commands import create_command
print(create_command("install").parser.parse_args([])[0].index_url)'
}

# A lock of other dependencies would have to be resolved anew, from whatever the index offers today.
require_current_lock() {
    poetry check --lock --no-interaction >&2 || die "poetry.lock does not belong to pyproject.toml, so nothing was installed." \
        "Take both from one commit (git checkout -- poetry.lock pyproject.toml), or run 'poetry lock' after a change of your own"
}

# Exactly what the lock says: Poetry compares every file with its SHA-256 there and refuses another.
poetry_install() {
    require_current_lock
    POETRY_REQUESTS_MAX_RETRIES=${POETRY_REQUESTS_MAX_RETRIES:-5} POETRY_REQUESTS_TIMEOUT=${POETRY_REQUESTS_TIMEOUT:-60} \
        attend poetry install --no-interaction --with sweep
}

# Poetry reads an API that only the public index has, not pip's mirrors; the plugin makes it read the one that all have.
# The keyring is off: on a server without a desktop it can wait for ever.
install_with_private_poetry() {
    local python=$1 try
    is_private_poetry_built || build_private_poetry "$python"
    use_private_poetry
    POETRY_PYPI_MIRROR_URL=${POETRY_PYPI_MIRROR_URL:-$(pip_index)}
    export POETRY_PYPI_MIRROR_URL POETRY_KEYRING_ENABLED=${POETRY_KEYRING_ENABLED:-false}
    poetry env use --quiet "$python"
    for try in 1 2 3; do # what was downloaded is kept, so that another try is cheap
        if poetry_install; then
            return
        fi
        say "poetry install failed (try $try of 3)"
    done
    die "the packages could not be installed; the messages above say why. Running this again continues where it stopped"
}

install() {
    local python
    python=$(find_python)
    rm -f "$STAMP"
    say "Installing into .venv (about 5 GB, a few minutes the first time) ..."
    if [[ ! -e .poetry ]] && is_poetry_2; then
        if poetry env use --quiet "$python" && poetry_install; then
            return
        fi
        say "The Poetry on PATH could not install (its index may not offer what it reads); trying with a private one."
    fi
    install_with_private_poetry "$python"
}

# Poetry leaves the packages uncompiled. Compiled, a command starts in a third of the time, also where Python is told not to
# write bytecode (PYTHONDONTWRITEBYTECODE, common in containers) and would compile them each time anew.
compile_packages() {
    say "Compiling the packages ..."
    attend .venv/bin/python -m compileall -q -j 0 .venv/lib >/dev/null || true # a package may hold a template that is no Python
}

if ! is_installed; then
    install
    compile_packages
    fingerprint >"$STAMP"
fi
