#!/usr/bin/env bash
# Trains the student with the knowledge of a teacher that has been exported before (cmd/run_teacher_train.sh). The preset is
# distill=dllm2rec unless another is given.
#
#   bash cmd/run_distill_dllm2rec.sh dataset=movielens
#   bash cmd/run_distill_dllm2rec.sh dataset=movielens distill=dllm2rec_official distill.lambda=0.3
#   bash cmd/run_distill_dllm2rec.sh distill.init=baseline hydra.run.dir=result/result_20260101_120000
#
# Every argument is a Hydra override; `--help` lists the configuration. A relative path is relative to the project root.
set -euo pipefail
# shellcheck source=cmd/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
require_installed

run_module src.exp.run_distill "$@"
