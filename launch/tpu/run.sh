#!/usr/bin/env bash
# Starts a command on all workers of a slice, in dynscaling/, and comes back.
#
#   PROJECT=my-project ZONE=us-west4-a TPU_NAME=dynscaling \
#     launch/tpu/run.sh [--dry-run] -- .venv/bin/python -m launch.run \
#     --config=configs/reasoner.py --workdir=runs/tpu
#
# It goes on when the connection ends. launch/tpu/logs.sh shows what it prints,
# which ends with its exit status. launch/tpu/worker.sh says how several workers
# draw one run.

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
options "$@"
words 0 0
need_tpu
need_command

# the redirection must cover all that goes on, or ssh would wait for it
run gcloud compute tpus tpu-vm ssh "$TPU_NAME" "--project=$PROJECT" \
  "--zone=$ZONE" --worker=all \
  "--command=cd dynscaling && { nohup launch/tpu/worker.sh -- $(quoted "${BEHIND[@]}") > run.log 2>&1 < /dev/null & }"
