# shellcheck shell=bash
# The environment of every run: PATH, CUDA, caches, threads. cmd/*.sh source it; in a shell of your own:
#
#   source env_shell/default.sh
#   poetry run python -m src.exp.run_teacher
#
# A site that needs other settings (modules, proxies, another CUDA) keeps its own file and names it:
#
#   ENV_SHELL=env_shell/my_cluster.sh bash cmd/run_all_pipeline.sh
#
# A variable that is already set is left alone. Sourcing twice changes nothing.

_prepend() { # _prepend VARIABLE FOLDER: puts an existing folder first in a search path that does not have it yet
    if [[ -d $2 && ":${!1:-}:" != *":$2:"* ]]; then
        export "$1=$2${!1:+:${!1}}"
    fi
}

_cores() { # physical cores, no more than this process may use (affinity, then the container's CPU quota)
    local cores physical quota period
    cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
    physical=$(lscpu -p=core,socket 2>/dev/null | grep -v '^#' | sort -u | wc -l || true)
    if ((physical > 0 && physical < cores)); then
        cores=$physical
    fi
    if [[ -r /sys/fs/cgroup/cpu.max ]]; then
        read -r quota period </sys/fs/cgroup/cpu.max
        if [[ $quota != max ]] && (((quota + period - 1) / period < cores)); then
            cores=$(((quota + period - 1) / period))
        fi
    fi
    echo "$cores"
}

_project_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Poetry, where cmd/install.sh had to make a private one.
_prepend PATH "$_project_root/.poetry/bin"

# CUDA. The toolkit's lib64 stays out of LD_LIBRARY_PATH on purpose: torch brings its own CUDA 12.1 libraries, and a toolkit of
# another version, found first, breaks their import ("undefined symbol: __nvJitLink..."). Only folders of the driver go there.
if [[ -z ${CUDA_HOME:-} && -d /usr/local/cuda ]]; then
    export CUDA_HOME=/usr/local/cuda
fi
if [[ -n ${CUDA_HOME:-} ]]; then
    _prepend PATH "$CUDA_HOME/bin"
fi
_prepend LD_LIBRARY_PATH /usr/local/nvidia/lib64
_prepend LD_LIBRARY_PATH /usr/lib/wsl/lib
export CUBLAS_WORKSPACE_CONFIG=${CUBLAS_WORKSPACE_CONFIG:-:4096:8} # cuBLAS repeats its results only with a fixed workspace

# Caches live with the project, save a Hugging Face home that exists already: it may hold LLaMA and the token to fetch it.
if [[ -z ${HF_HOME:-} && ! -d ${HOME:-}/.cache/huggingface ]]; then
    export HF_HOME="$_project_root/.cache/huggingface"
fi
export TORCH_HOME=${TORCH_HOME:-$_project_root/.cache/torch}
export MPLCONFIGDIR=${MPLCONFIGDIR:-$_project_root/.cache/matplotlib}

# Threads.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(_cores)}
export MKL_NUM_THREADS=${MKL_NUM_THREADS:-$OMP_NUM_THREADS}
export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false} # its threads and forked data loaders do not mix

unset -f _prepend _cores
unset -v _project_root
