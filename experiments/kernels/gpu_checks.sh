#!/usr/bin/env bash
# Every number of this project that needs a GPU, in under 9 minutes:
#
#     bash experiments/kernels/gpu_checks.sh [FOLDER]   # writes FOLDER/gpu_*.json
#
# FOLDER is experiments/results by default. The parts, in this order:
#   1. kernel_check: every implementation against the reference
#   2. the benchmark, the shapes that matter most first
#   3. gpu_train_step: whole training steps
#   4. the rest of the benchmark, as time allows
#
# Needs jax with its CUDA plugin, flax, optax, numpy and jaxtyping, and no network. PYTHON=... picks
# the interpreter, PEER=DIR a checkout of a PyTorch HSTU implementation to time as well,
# GPU_CHECKS_TINY=1 tries the script on a CPU. Block sizes are tuned apart from this:
# python -m pallas_kernels.bench --tune --shape='4x128-*'
# Exit code: 0 all parts passed, 1 a part failed (the others still ran), 2 a package is missing,
# 3 there is no GPU.
set -u
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}
tiny=${GPU_CHECKS_TINY:-}
# What experiments/results holds is of a GPU: a try on a CPU writes elsewhere.
results=${1:-$([ -n "$tiny" ] && mktemp -d || echo experiments/results)}
mkdir -p "$results" || exit 1
cache=$(mktemp -d)
checks=()
trap 'kill "${checks[@]}" 2>/dev/null; rm -rf "$cache"' EXIT
export JAX_COMPILATION_CACHE_DIR=$cache # a second try of a part does not compile again
[ -n "${PEER:-}" ] && export XLA_PYTHON_CLIENT_PREALLOCATE=false # torch needs some of the memory
[ -n "$tiny" ] && export JAX_PLATFORMS=cpu

missing=$("$python" -c "
import importlib.util as find
needed = ('jax', 'flax', 'optax', 'numpy', 'jaxtyping')
print(*[name for name in needed if not find.find_spec(name)])") || exit 2
if [ -n "$missing" ]; then
    echo "$python has no $missing: pip install it, or put its unpacked wheel on PYTHONPATH" >&2
    exit 2
fi
backend=$("$python" -c 'import jax; print(jax.__version__, jax.default_backend())' 2>&1 | tail -1)
if [ -z "$tiny" ] && [[ $backend != *" gpu" ]]; then
    echo "JAX finds no GPU here ($backend); nothing was run" >&2
    exit 3
fi

start=$SECONDS
failed=0
part() { # part NAME SECONDS COMMAND...: runs it, and kills it some seconds after its time
    local name=$1 seconds=$2
    shift 2
    echo "== $name (at most $seconds s, $((SECONDS - start)) s so far)"
    timeout --kill-after=5 "$seconds" "$@"
    local code=$?
    [ $code -eq 0 ] && return
    echo "== $name: exit code $code"
    failed=1
    return $code
}
bench() { # bench FILE SECONDS SHAPES: starts again after a crash, without the case that crashed
    local file=$1 until=$((SECONDS + $2)) shapes=$3 try left
    rm -f "$file"
    for try in 1 2 3 4; do
        left=$((until - SECONDS))
        [ $left -lt 20 ] && return
        part "benchmark to $file, try $try" $left "$python" -m pallas_kernels.bench \
            --shape="$shapes" --json="$file" --resume --seconds=$((left * 2 / 3)) \
            --peer="${PEER:-}" && return
    done
}

summary() { # the table of the benchmark, and what was skipped and why
    echo "== results"
    "$python" -m experiments.kernels.kernel_bench "$results"/gpu_kernel_bench*.json
    [ -n "${PEER:-}" ] || echo "skipped: a PyTorch HSTU kernel; PEER=DIR gives its checkout"
    echo "skipped: tuning of block sizes (pallas_kernels.bench --tune), more than one GPU"
}

if [ -n "$tiny" ]; then
    part "correctness" 120 "$python" -m experiments.kernels.kernel_check \
        --length=48 --cases=2 --json="$results/gpu_kernel_check_tiny.json"
    bench "$results/gpu_kernel_bench.json" 60 "tiny,tiny-bias"
    part "training steps" 120 "$python" -m experiments.kernels.gpu_train_step \
        --tiny --steps=2 --json="$results/gpu_train_step.json"
    summary
    exit $failed
fi
# A process for each: after an illegal address the device answers nothing more of that process.
echo "== correctness (at most 140 s, $((SECONDS - start)) s so far)"
names=(pallas_triton pallas_mosaic_gpu xla,jax_triton)
for name in "${names[@]}"; do
    file=$results/gpu_kernel_check_${name/xla,jax_triton/others}.json
    XLA_PYTHON_CLIENT_PREALLOCATE=false timeout --kill-after=5 140 \
        "$python" -m experiments.kernels.kernel_check \
        --implementation="$name" --seconds=115 --json="$file" &
    checks+=($!)
done
for i in "${!checks[@]}"; do
    wait "${checks[i]}" || { echo "== correctness of ${names[i]}: exit code $?"; failed=1; }
done
bench "$results/gpu_kernel_bench.json" 160 \
    "4x128-l4096,4x128-l4096-bias,4x128-sparse80,4x128-sparse80-padded"
part "training steps" 110 \
    "$python" -m experiments.kernels.gpu_train_step --json="$results/gpu_train_step.json"
bench "$results/gpu_kernel_bench_more.json" $((520 - SECONDS + start)) \
    "4x128-sparse80-bias,4x64-l4096,8x64-l4096-bias,4x256-l4096,4x128-l16384,4x128-l1024,\
ml_1m-large-bias,ml_1m-large-bf16-bias,books-bias,4x128-sparse95,4x128-sparse50"
summary
echo "== done in $((SECONDS - start)) s; results in $results"
exit $failed
