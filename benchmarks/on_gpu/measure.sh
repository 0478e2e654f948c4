#!/usr/bin/env bash
# On a GPU machine, in the project's root:   OUT=FOLDER bash benchmarks/on_gpu/measure.sh [STAGE ...]
#
#   rates        20 s   versions, the card, the rates of products and copies
#   tests       120 s   the tests that need a GPU; each prints how far the GPU is from the CPU
#   pair        150 s   simclr_fashion_mnist.yaml for fewer epochs: pair, scores, Deja Vu, probe
#   profile      30 s   training steps: the host's time beside the device's, the longest kernels
#   benchmarks  150 s   views, scores and neighbours a second, by the project's benchmarks
#   memory       60 s   the memory that a step of each config takes; on a CPU it is counted
#   switches    150 s   what cuDNN's choice, fused optimizers, torch.compile and CUDA graphs bring
#   compiled    120 s   the tests of compiled methods
#
# All of them in this order if none is named. Each has its own limit and log (FOLDER/STAGE.log); none
# stops another; all end within LIMIT seconds (540). Logs end with what to read first, printed at the
# end. DEVICE=cpu TINY=1 tries all of it on a CPU. RATE: images/s by which `pair` plans its epochs.
set -u
: "${OUT:?the folder for what comes back}" "${DEVICE:=cuda}" "${LIMIT:=540}" "${TINY:=}"
: "${PYTHON:=python3}" "${RATE:=15000}"
deadline=$(($(date +%s) + LIMIT))
[ $# -gt 0 ] || set -- rates tests pair profile benchmarks memory switches compiled
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$OUT"
export DEVICE TINY PYTHON OUT PYTHONUNBUFFERED=1 MPLCONFIGDIR="$work/mpl"
export TORCHINDUCTOR_CACHE_DIR="$work/inductor"

# Packages that the machine lacks, if prepare.sh brought them along; and the images.
if [ -d .whl ] && [ "$DEVICE" = cuda ]; then
    install=("$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade)
    "${install[@]}" --target "$work/site" .whl/*.whl 2>&1 | tail -3
    export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}"
fi
data=data
if [ -d .gpu-data ]; then
    data="$work/data"
    mkdir -p "$data/FashionMNIST/raw"
    for packed in .gpu-data/*.gz; do
        gzip -dc "$packed" >"$data/FashionMNIST/raw/$(basename "${packed%.gz}")"
    done
fi

# --- stages ---------------------------------------------------------------------------------------

run() { timed "$PYTHON" -m "benchmarks.$1" --device "$DEVICE"; }

rates() { run on_gpu.rates; }

tests() { run_tests "not compiled"; }

compiled() { run_tests compiled; }

run_tests() {
    local files which=$1 processes=4
    [ -z "$TINY" ] || which="$1 and (compiled or simclr-sgd)" processes=0
    files=$(grep -lE 'mark[.]gpu' tests/*/test_*.py)
    # figures of tests that passed come last
    OMP_NUM_THREADS=2 "$PYTHON" -m pytest -m gpu -k "$which" -n "$processes" -v -rsP -W ignore \
        -p no:cacheprovider -p no:benchmark $files |
        grep --line-buffered -vE '^(-|_|=)* *(Captured|$)|^ +(candidate|independent|shared|external)'
    return "${PIPESTATUS[0]}"
}

profile() { run on_gpu.profile_steps; }

switches() { run on_gpu.switches; }

benchmarks() {
    local questions="on_gpu.scoring_ways on_gpu.views" question code=0
    [ -n "$TINY" ] || questions="$questions neighbors"
    for question in $questions; do run $question || code=1; done
    return $code
}

config=configs/simclr_fashion_mnist.yaml
small=""
[ -z "$TINY" ] || small="--subsets.shared 192 --subsets.candidate 64 --subsets.independent 64
    --subsets.external 64 --training.batch_size 64 --encoder.name resnet_small --data.verify false"

pair() {
    # as many epochs as fit 40 s by RATE
    local epochs run="$work/pair" fewer="" probe="--probe.seeds 0 --probe.epochs 30" code=0
    epochs=$((40 * RATE / (2 * 44544)))
    [ "$epochs" -ge 4 ] || epochs=4
    if [ -n "$TINY" ]; then
        epochs=2 fewer="--scores.views 3"
        probe="--probe.seeds 0 --probe.epochs 3 --probe.warmup_epochs 1 --probe.train_images 400"
    fi
    timed "$PYTHON" train_simclr.py --config "$config" --run "$run" --data.root "$data" \
        --device "$DEVICE" $small --training.epochs "$epochs" --training.knn_every "$epochs" \
        --training.checkpoint_epochs '[]' || return
    head -c 600 "$run"/seed_0/*/log.jsonl
    local of_run="--config $run/config.yaml"
    timed "$PYTHON" memorization_scores.py $of_run $fewer --scores.precision bf16 || code=1
    timed "$PYTHON" memorization_scores.py $of_run $fewer --scores.per_subset 2000 || code=1
    timed "$PYTHON" dejavu.py $of_run ${TINY:+--dejavu.public_images 300 --dejavu.views 2} || code=1
    timed "$PYTHON" linear_probing_train.py $of_run $probe || code=1
    mkdir -p runs/benchmarks
    cp -r "$run/scores" runs/benchmarks/pair_scores || code=1
    return $code
}

memory() { run on_gpu.memory_of_configs; }

timed() {
    local start=$SECONDS code
    "$@"
    code=$?
    echo "=== exit code $code after $((SECONDS - start)) s: ${*:2:3}"
    return $code
}

# --- one after the other --------------------------------------------------------------------------

declare -A most=([rates]=20 [tests]=120 [pair]=150 [profile]=30 [benchmarks]=150 [memory]=60
    [switches]=150 [compiled]=120)
export -f rates tests run_tests pair profile benchmarks memory switches compiled run timed
export config small work data RATE

for stage in "$@"; do
    [ -n "${most[$stage]:-}" ] || { echo "no such stage: $stage (${!most[*]})"; continue; }
    left=$((deadline - $(date +%s) - 5))
    limit=${most[$stage]}
    [ -z "$TINY" ] || limit=$((6 * limit))
    [ "$limit" -le "$left" ] || limit=$left
    [ "$limit" -ge 10 ] || { echo "$stage: no time left"; continue; }
    start=$SECONDS
    timeout --kill-after=5 "$limit" bash -c "$stage" >"$OUT/$stage.log" 2>&1 </dev/null
    code=$?
    [ "$code" -ne 124 ] || echo "(stopped after $limit s)" >>"$OUT/$stage.log"
    echo "$stage: exit code $code after $((SECONDS - start)) s" | tee -a "$OUT/$stage.log"
done
[ ! -d runs/benchmarks ] || tar -C runs -czf "$OUT/results.tar.gz" benchmarks
for stage in "$@"; do
    [ -f "$OUT/$stage.log" ] || continue
    echo
    echo "##### $stage"
    tail -n 40 "$OUT/$stage.log" | cut -c -150
done
