#!/usr/bin/env bash
# From a fresh clone to a result: installs, then runs the whole pipeline on the embedded sample data with a tiny LLaMA on the CPU.
# Ends with a table of baseline against distilled student and the paths of the report and the plots.
#
#   bash cmd/quickstart.sh
#   bash cmd/quickstart.sh general.seed=7
#
# Every argument is a Hydra override (see cmd/run_all_pipeline.sh).
set -euo pipefail
# shellcheck source=cmd/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    print_help
    exit
fi
attend bash cmd/install.sh
exec bash cmd/run_all_pipeline.sh +experiment=quickstart "$@"
