#!/usr/bin/env bash
# Evaluates what a run folder holds (teacher, baseline, distilled student) on the test set and writes the report.
#
#   bash cmd/run_eval_all.sh eval.run_dir=result/result_20260101_120000
#
# Every argument is a Hydra override; `--help` lists the configuration. A relative path is relative to the project root.
set -euo pipefail
# shellcheck source=cmd/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
require_installed

run_module src.exp.run_eval_all "$@"
