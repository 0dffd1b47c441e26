#!/usr/bin/env bash
# Trains the LLM teacher, evaluates it and exports what it knows to data/teacher_outputs/<dataset>.
#
#   bash cmd/run_teacher_train.sh dataset=movielens teacher=ilora teacher.llm_path=/models/Llama-2-7b-hf
#   bash cmd/run_teacher_train.sh dataset=sample teacher=ilora_tiny general.device=cpu
#
# Every argument is a Hydra override; `--help` lists the configuration. A relative path is relative to the project root.
set -euo pipefail
# shellcheck source=cmd/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
require_installed

run_module src.exp.run_teacher "$@"
