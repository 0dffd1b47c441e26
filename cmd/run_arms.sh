#!/usr/bin/env bash
# Is it the LLM that helps? Trains the variants of a finished distillation over several seeds and puts them into one table:
# the frozen recommender as teacher, a random teacher, ranking only, embedding only, most popular, the teacher itself.
#
#   bash cmd/run_arms.sh study.run_dir=result/result_20260101_120000
#   bash cmd/run_arms.sh study.run_dir=result/result_20260101_120000 study=ablations study.seeds=[1,2,3,4,5]
#
# The settings are those of the distillation; every argument is a Hydra override on top of them. Other questions are other
# files of conf/study. Started again with the same hydra.run.dir it goes on where it stopped.
set -euo pipefail
# shellcheck source=cmd/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
require_installed

run_module src.exp.run_study "$@"
