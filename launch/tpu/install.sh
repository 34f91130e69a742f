#!/usr/bin/env bash
# Puts the last commit of this repository on all workers of a slice and
# installs it there, in dynscaling/.venv of the home directory.
#
#   PROJECT=my-project ZONE=us-west4-a TPU_NAME=dynscaling \
#     launch/tpu/install.sh [--dry-run]
#
# Python 3.12 comes by way of uv, whatever the machine has.

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
options "$@"
words 0 0
need_tpu
place=("--project=$PROJECT" "--zone=$ZONE" --worker=all)
code=${TMPDIR:-/tmp}/$TPU_NAME-code.tar.gz

remote="mkdir -p dynscaling && tar -xzf code.tar.gz -C dynscaling"
remote+=" && cd dynscaling && python3 -m pip install --quiet --user"
remote+=" --require-hashes --requirement third_party/pins-uv.txt"
remote+=" && ~/.local/bin/uv venv --quiet --allow-existing --python 3.12 .venv"
remote+=" && ~/.local/bin/uv pip install --quiet --python .venv"
remote+=" --require-hashes --requirement third_party/pins-tpu.txt"
remote+=" && ~/.local/bin/uv pip install --quiet --python .venv"
remote+=" --no-deps --no-build-isolation --editable ."

run git -C "$ROOT" archive --format=tar.gz "--output=$code" HEAD
run gcloud compute tpus tpu-vm scp "$code" "$TPU_NAME:code.tar.gz" "${place[@]}"
run gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${place[@]}" \
  "--command=$remote"
run rm -f "$code"
