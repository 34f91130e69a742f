#!/usr/bin/env bash
# Asks Google Cloud for a slice of TPUs and waits until it is there.
#
#   PROJECT=my-project ZONE=us-west4-a TPU_NAME=dynscaling \
#     launch/tpu/create.sh [--spot] [--dry-run] v5e-8
#
# The device is a name of launch.plan: v5e-8, v5p-64, v6e-8. --spot asks for a
# slice that costs less and may be taken away at any time. It costs money from
# the moment it is there until launch/tpu/delete.sh; --dry-run only prints the
# commands.

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
options "$@"
words 1 1
need_tpu
accelerator "${WORDS[0]}"
place=("--project=$PROJECT" "--zone=$ZONE")

run gcloud compute tpus queued-resources create "$TPU_NAME" "${place[@]}" \
  "--node-id=$TPU_NAME" "--accelerator-type=$ACCELERATOR" \
  "--runtime-version=$RUNTIME" ${SPOT:+--spot}
if [[ -n $DRY_RUN ]]; then printf '# then, until it says ACTIVE:\n'; fi
while true; do
  state=$(run gcloud compute tpus queued-resources describe "$TPU_NAME" \
    "${place[@]}" '--format=value(state.state)')
  printf '%s\n' "$state"
  case $state in
    ACTIVE) break ;;
    FAILED | SUSPENDING | SUSPENDED | DELETING)
      die "$TPU_NAME is $state; see gcloud compute tpus queued-resources describe, then launch/tpu/delete.sh"
      ;;
  esac
  if [[ -n $DRY_RUN ]]; then break; fi
  sleep 30
done
