#!/usr/bin/env bash
# Makes .venv in this checkout, without root: launch/install.sh tpu|gpu|cpu
#
# Again, it brings the environment up to date in seconds. uv is taken from PATH or fetched into .uv/;
# it brings a Python of its own, so that the system's does not matter. The versions are uv.lock's.
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:?"usage: launch/install.sh tpu|gpu|cpu"}
extras=(--extra data --extra gcs --extra hub)
case $kind in
  tpu | gpu) extras+=(--extra "$kind") ;;
  cpu) ;;
  *)
    echo "error: launch/install.sh $kind: choose tpu, gpu or cpu" >&2
    exit 2
    ;;
esac
fail() {
  echo "error: $(hostname): $1" >&2
  exit 74
}

uv=$(command -v uv || echo .uv/bin/uv)
if [[ ! -x $uv ]]; then
  python3 -m pip install --quiet --disable-pip-version-check --target .uv 'uv>=0.9' ||
    fail "uv cannot be installed; has this host a network, and python3 pip? Or put uv on PATH"
fi
"$uv" sync --locked --quiet --python "${PYTHON_VERSION:-3.11}" "${extras[@]}" ||
  fail "the environment cannot be made; see the lines above, and run this again"
echo "$(hostname): $PWD/.venv is ready: $(.venv/bin/python -m clipseg_jax.main --version)"
