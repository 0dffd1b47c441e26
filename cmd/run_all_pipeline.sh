#!/usr/bin/env bash
# Runs everything in one run folder: teacher, student baseline, distillation, evaluation. Stops at the first stage that fails.
#
#   bash cmd/run_all_pipeline.sh dataset=movielens teacher.llm_path=/models/Llama-2-7b-hf
#   bash cmd/run_all_pipeline.sh +experiment=quickstart
#   bash cmd/run_all_pipeline.sh dataset=movielens hydra.run.dir=result/my_run
#   bash cmd/run_all_pipeline.sh dataset=movielens paths.result_root=/scratch/result
#
# Every argument is a Hydra override and goes to all four stages. The folder is a new <paths.result_root>/result_<timestamp>
# unless hydra.run.dir is given. A relative path is relative to the project root. Sweeps (-m) are for the single scripts.
#
# Started again on a folder (hydra.run.dir=...), it skips the stages that are complete and were made from the same settings,
# data and teacher files, and goes on with the one that was interrupted. Each stage says what it does and why. A finished stage
# whose settings differ is only replaced with general.overwrite=true. The evaluation takes seconds and always runs.
set -euo pipefail
# shellcheck source=cmd/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

STAGES=(run_teacher_train run_student_baseline run_distill_dllm2rec run_eval_all)

unquote() { # unquote VALUE: a Hydra value as Hydra reads it
    local value=$1
    if [[ ${#value} -ge 2 && ($value == \'*\' || $value == \"*\") ]]; then
        value=${value:1:${#value}-2}
    fi
    printf '%s' "$value"
}

quote() { # quote TEXT: a Hydra value that reads as this text, be there spaces, brackets or equals signs in it
    if [[ $1 =~ ^[A-Za-z0-9_./-]+$ ]]; then
        printf '%s' "$1"
    else
        printf "'%s'" "${1//\'/\\\'}"
    fi
}

new_run_dir() { # new_run_dir ROOT: prints a folder that does not exist; two pipelines may begin in the same second
    local run_dir
    while run_dir=$1/result_$(date +%Y%m%d_%H%M%S) && [[ -e $run_dir ]]; do
        sleep 1
    done
    printf '%s' "$run_dir"
}

run_dir='' result_root=result # run_dir is a Hydra value, quotes and all
for argument in "$@"; do
    case $argument in
        -h | --help)
            print_help
            exit
            ;;
        -m | --multirun) die "one pipeline is one run folder: sweep with the single scripts, or call this one in a loop" ;;
        teacher.export.rows=policy) # the baseline chooses the rows
            STAGES=(run_student_baseline run_teacher_train run_distill_dllm2rec run_eval_all)
            ;;
        hydra.run.dir=* | +hydra.run.dir=* | ++hydra.run.dir=*) run_dir=${argument#*=} ;;
        paths.result_root=* | +paths.result_root=* | ++paths.result_root=*) result_root=$(unquote "${argument#*=}") ;;
    esac
done
if [[ $run_dir == *\$\{* ]]; then
    die "hydra.run.dir=$run_dir: give a plain path; every stage would resolve the \${...} anew and get a folder of its own"
fi
given=("$@")
if [[ -z $run_dir ]]; then
    run_dir=$(quote "$(new_run_dir "$result_root")")
    given=("hydra.run.dir=$run_dir" "$@")
fi

require_installed
again="bash cmd/run_all_pipeline.sh$(printf ' %q' "${given[@]}")"
way_on="to go on: $again"
number=0
for stage in "${STAGES[@]}"; do
    number=$((number + 1))
    overrides=("${given[@]}")
    if [[ $stage == run_eval_all ]]; then
        overrides=("eval.run_dir=$run_dir" "${overrides[@]}")
    fi
    say "" "=== $number/${#STAGES[@]} $stage -> $run_dir"
    code=0
    attend bash "cmd/$stage.sh" "${overrides[@]}" || code=$?
    if ((code != 0)); then
        say "" "error: stage $number/${#STAGES[@]} ($stage) failed with exit code $code; its messages are above." \
            "What was done so far is kept in $run_dir. To go on from there:" "  $again"
        exit "$code"
    fi
done
