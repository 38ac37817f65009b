#!/usr/bin/env bash
# One machine, N processes: launch/local.sh N --config=configs/voc_maskclip.py [more arguments]
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
mkdir -p "$logs"
command -v nvidia-smi > /dev/null || export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=${DEVICES:-1}

# Ctrl-C reaches the processes through this script alone: background jobs ignore it.
pids=() interrupted=
trap 'kill -TERM "${pids[@]}" 2> /dev/null || true' TERM
trap 'interrupted=1; kill -TERM "${pids[@]}" 2> /dev/null || true' INT
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
  # A signal to this script ends `wait`, not the process: wait again, for its last checkpoint.
  while kill -0 "$pid" 2> /dev/null; do wait "$pid" || true; done
  # The highest code, as srun gives it.
  ended=0
  wait "$pid" 2> /dev/null || ended=$?
  if ((ended > code)); then code=$ended; fi
done
[[ -n $interrupted && $code == 143 ]] && code=130
exit "$code"
