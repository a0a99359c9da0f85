#!/usr/bin/env bash
# Test and measure the CUDA path on a GPU machine: one call, at most 480 s, results in $OUT.
#
# Needs Python 3.12 with torch and the packages of the machine. What else the project needs comes
# from wheels in .whl/, and images from .data/isic2018.zip, if these exist. DEVICE=cpu runs all
# stages that a CPU can run, with small settings, to test this script.
set -u
cd "$(dirname "$0")/.."
OUT="${OUT:-runs/gpu}"
DEVICE="${DEVICE:-cuda}"
mkdir -p "$OUT"
export GOMP_SPINCOUNT=1000 LESIONSEARCH_CACHE="$PWD/.gpu-cache" HF_HUB_OFFLINE=1
START=$(date +%s)

# stage NAME SECONDS COMMAND...: run a command within a time limit, and append a line to stages.jsonl.
stage() {
  local name=$1 limit=$2 log start rc
  log=$(mktemp)
  shift 2
  start=$(date +%s)
  echo "--- $name"
  timeout -k 5 "$limit" "$@" > "$log" 2>&1
  rc=$?
  { echo "--- $name"; cat "$log"; } >> "$OUT/log.txt"
  tail -n 15 "$log"
  echo "{\"stage\": \"$name\", \"rc\": $rc, \"seconds\": $(($(date +%s) - start)), \"total\": $(($(date +%s) - START))}" |
    tee -a "$OUT/stages.jsonl"
}

install() {
  if compgen -G ".whl/*.whl" > /dev/null; then
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target .site .whl/*.whl
  fi
  if [ -f .data/isic2018.zip ]; then python3 -m zipfile -e .data/isic2018.zip .data; fi
  python3 -c "import torch, optuna, lesionseg; print(torch.__version__, optuna.__version__)"
  nvidia-smi
  df -h /dev/shm
  nproc
}

# search OPTIONS...: run a study; record the utilization of the GPU once a second meanwhile.
search() {
  local watcher=""
  if command -v nvidia-smi > /dev/null; then
    nvidia-smi --query-gpu=timestamp,utilization.gpu,memory.used --format=csv,noheader,nounits -l 1 > "$OUT/utilization.csv" &
    watcher=$!
  fi
  python3 cli.py run "$STUDY" --data .data/isic2018 --out "$OUT/study" "$@"
  local rc=$?
  if [ -n "$watcher" ]; then kill "$watcher"; fi
  cp "$OUT/study/final/metrics.json" "$OUT/metrics.json"
  cp "$OUT/study/report.html" "$OUT/report.html"
  python3 cli.py status "$OUT/study" --json > "$OUT/status.json"
  rm -rf "$OUT/study"
  return $rc
}
export -f install search

if [ "$DEVICE" = cpu ]; then
  export LESIONSEARCH_GPU_TESTS=cpu
  STUDY=quick
  TIMELINE=(--size 64 --rounds 1 --device cpu)
  THROUGHPUT=(--device cpu --sizes 64 --rounds 1 --steps 2 --photographs 0 --networks "U-Net 8, depth 3")
  SEARCH=(--trials 2 --workers 2 --device cpu --set data.image_size=64 --set budget.epochs=2 --set pruner.min_epochs=1 --set data.limit.train=64
    --set data.limit.val=16 --set data.limit.test=32)
else
  STUDY=isic2018
  TIMELINE=(--size 256 --device "$DEVICE" --rounds 3)
  THROUGHPUT=(--device "$DEVICE" --sizes 256 --rounds 3 --steps 60 --photographs 0 --loaders 8 15 --compile
    --networks "U-Net 32, depth 4" "U-Net, ResNet-34")
  SEARCH=(--trials 200 --gpus 0 --workers-per-gpu 4 --set data.image_size=256 --set budget.epochs=12)
fi
export STUDY OUT PYTHONPATH="$PWD:$PWD/.site"

stage install 60 bash -c install
# Without the project's settings of pytest, which name plugins that the machine lacks.
stage tests 100 python3 -m pytest -c /dev/null --rootdir "$PWD" -q -m gpu --no-header -p no:cacheprovider tests/gpu
stage timeline 60 python3 -m bench.timeline "${TIMELINE[@]}" --to "$OUT/timeline.md"
stage throughput 90 python3 -m bench.throughput "${THROUGHPUT[@]}" --to "$OUT/throughput.md"
# The rest of 480 s is for the search; 80 s of it for its start, the final test and the report.
LEFT=$((470 - $(date +%s) + START))
SEARCH+=(--hours "$(python3 -c "print(($LEFT - 80) / 3600)")")
stage search "$LEFT" bash -c 'search "$@"' search "${SEARCH[@]}"
cat "$OUT/stages.jsonl"
