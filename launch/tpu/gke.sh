#!/usr/bin/env bash
# The same on Google Kubernetes Engine, by way of xpk.
#
#   export PROJECT=my-project ZONE=us-west4-a CLUSTER=dynscaling BUCKET=my-bucket
#   launch/tpu/gke.sh create [--spot] v5e-8
#   launch/tpu/gke.sh run v5e-8 first -- python -m launch.run \
#     --config=configs/reasoner.py --workdir=runs/gke
#   launch/tpu/gke.sh logs first
#   launch/tpu/gke.sh fetch runs
#   launch/tpu/gke.sh delete
#
# run sends the last commit of this repository. When its command ends, each
# worker copies runs/ to the bucket, below a name of its own. delete asks
# before it deletes the cluster; the bucket stays. --dry-run only prints the
# commands.

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
options "$@"
words 1 3
need_place
need CLUSTER "the name of a cluster, such as dynscaling"
need BUCKET "a bucket for results, without gs://"
place=("--cluster=$CLUSTER" "--project=$PROJECT" "--zone=$ZONE")
action=${WORDS[0]}
if [[ -n $SPOT && $action != create ]]; then die "--spot is for create"; fi

case $action in
  create)
    words 2 2
    accelerator "${WORDS[1]}"
    capacity=--on-demand
    if [[ -n $SPOT ]]; then capacity=--spot; fi
    run xpk cluster create "${place[@]}" "--tpu-type=$ACCELERATOR" \
      --num-slices=1 "$capacity" --enable-gcsfuse-csi-driver
    run xpk storage attach results "${place[@]}" --type=gcsfuse \
      "--bucket=$BUCKET" --size=100 --mount-point=/results \
      --readonly=false --auto-mount=true
    ;;
  run)
    words 3 3
    accelerator "${WORDS[1]}"
    need_command
    # xpk copies a whole directory into the image: not the one with .venv
    code=${TMPDIR:-/tmp}/$CLUSTER-code
    run rm -rf "$code"
    run mkdir -p "$code"
    run git -C "$ROOT" archive --format=tar "--output=$code.tar" HEAD
    run tar -xf "$code.tar" -C "$code"
    # shellcheck disable=SC2016 # HOSTNAME is the worker's
    keep='cp -r runs "/results/$HOSTNAME"'
    work="launch/tpu/worker.sh -- $(quoted "${BEHIND[@]}")"
    install="pip install --quiet --require-hashes --requirement third_party/pins-tpu.txt"
    install+=" && pip install --quiet --no-deps --no-build-isolation --editable ."
    run xpk workload create "${place[@]}" "--workload=${WORDS[2]}" \
      "--tpu-type=$ACCELERATOR" --num-slices=1 \
      --base-docker-image=python:3.12 "--script-dir=$code" \
      "--command=$install && if $work; then $keep; else $keep; exit 1; fi"
    ;;
  logs)
    words 2 2
    run kubectl logs --follow --prefix --all-containers \
      "--selector=jobset.sigs.k8s.io/jobset-name=${WORDS[1]}"
    ;;
  fetch)
    words 2 2
    run mkdir -p "${WORDS[1]}"
    run gcloud storage cp --recursive "gs://$BUCKET/*" "${WORDS[1]}"
    ;;
  delete)
    words 1 1
    run xpk cluster delete "${place[@]}"
    ;;
  *) die "there is no action $action; --help lists them" ;;
esac
