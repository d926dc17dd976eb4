#!/usr/bin/env bash
# Deletes a TPU and everything on it.

usage='delete.sh --name NAME --zone ZONE [--project PROJECT] [--yes]

Deletes the TPU with everything on its disks, after asking. Run collect.sh first.

  --name NAME  the TPU
  --zone ZONE  where it stands
  --project PROJECT  whose it is; default: the one gcloud is set to
  --yes  do not ask'

# shellcheck source=common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

yes=''
parse "$@"
need name zone
need_tpu

if [[ -z $yes && -z $dry_run ]]; then
  printf "Delete '%s' in %s and everything on it? [y/N] " "$name" "$zone" >&2
  read -r answer || answer=''
  [[ $answer == [yY]* ]] || fail 'nothing is deleted'
fi
tpu delete "$name" "${where[@]}" --quiet
