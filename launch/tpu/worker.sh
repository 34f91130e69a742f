#!/usr/bin/env bash
# Runs a command on one worker of a slice. run.sh, gke.sh and sky.yaml start it
# on each; here it is of use with --dry-run alone.
#
#   launch/tpu/worker.sh [--dry-run] -- .venv/bin/python -m launch.run \
#     --config=configs/reasoner.py --workdir=runs/tpu
#
# Where the slice has several workers, the command, which must be launch.run, is
# told by --coordinator, --processes and --process to draw one run with the
# others, each with the chips of its own host; or, where it says --lockstep, all
# with those of the slice. What it prints ends with its exit status.

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
options "$@"
words 0 0
need_command
port=8765

attribute() {
  curl -sf -H 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

# Kubernetes says in the environment what a TPU VM asks its metadata for: the
# workers, by host or as name:id:host, and which of them this is
if [[ -n ${TPU_WORKER_HOSTNAMES:-} ]]; then
  endpoints=$TPU_WORKER_HOSTNAMES number=${TPU_WORKER_ID:-0}
else
  endpoints=$(attribute worker-network-endpoints) ||
    die "no metadata says which workers there are; is this a TPU VM?"
  number=$(attribute agent-worker-number)
fi
IFS=, read -r -a workers <<< "$endpoints"

if ((${#workers[@]} > 1)); then
  # without these all hosts of the slice would be one machine to JAX
  alone=(
    env "TPU_PROCESS_BOUNDS=1,1,1" "TPU_CHIPS_PER_PROCESS_BOUNDS=2,2,1"
    "TPU_VISIBLE_CHIPS=0,1,2,3" TPU_WORKER_ID=0 TPU_WORKER_HOSTNAMES=localhost
    CLOUD_TPU_TASK_ID=0
  )
  for word in "${BEHIND[@]}"; do
    if [[ $word =~ ^--?lockstep(=[Tt]rue|=1)?$ ]]; then alone=(); fi
  done
  BEHIND=(
    "${alone[@]}" "${BEHIND[@]}" "--coordinator=${workers[0]##*:}:$port"
    "--processes=${#workers[@]}" "--process=$number"
  )
fi
status=0
run "${BEHIND[@]}" || status=$?
if [[ -z $DRY_RUN ]]; then printf 'exit status %s\n' "$status"; fi
exit "$status"
