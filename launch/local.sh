#!/usr/bin/env bash
# One machine, N processes: launch/local.sh N --config=configs/voc_reclippp.py [more arguments]
#
# With GPUs, process I gets GPU I. Without, each process has DEVICES simulated CPU devices
# (default 1). Output: process 0 here, the others in LOGS (default: a new temporary folder).
set -euo pipefail
cd "$(dirname "$0")/.."
count=${1:?"usage: launch/local.sh N --config=FILE [ARGS]"}
shift
python=${PYTHON:-python}
[[ -x .venv/bin/python && -z ${PYTHON:-} ]] && python=.venv/bin/python
port=${PORT:-$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}
logs=${LOGS:-$(mktemp -d)}
command -v nvidia-smi > /dev/null || export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=${DEVICES:-1}

pids=()
stop() { kill -TERM "${pids[@]}" 2> /dev/null || true; }
trap stop TERM INT
for ((i = count - 1; i >= 0; i--)); do
  out=/dev/stdout
  if ((i > 0)); then out=$logs/process$i.log; fi
  CUDA_VISIBLE_DEVICES=$i "$python" -m clipseg_jax.main "$@" \
    --coordinator="localhost:$port" --processes="$count" --process="$i" > "$out" 2>&1 &
  pids+=($!)
done
((count > 1)) && echo "processes 1 to $((count - 1)) write to $logs"
code=0
for pid in "${pids[@]}"; do
  # A signal ends `wait`, not the process: wait again, for its last checkpoint.
  while kill -0 "$pid" 2> /dev/null; do wait "$pid" || code=$?; done
  wait "$pid" 2> /dev/null || code=$?
done
exit "$code"
