#!/usr/bin/env bash
# Trains the student alone (no distillation): the number that distillation is measured against.
#
#   bash cmd/run_student_baseline.sh dataset=movielens student=sasrec
#   bash cmd/run_student_baseline.sh -m student=sasrec,gru4rec general.seed=1,2,3
#
# Every argument is a Hydra override; `--help` lists the configuration. A relative path is relative to the project root.
set -euo pipefail
# shellcheck source=cmd/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
require_installed

run_module src.exp.run_student_baseline "$@"
