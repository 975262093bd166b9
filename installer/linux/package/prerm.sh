#!/bin/sh
# Before removing or upgrading: the node service stops, so that it leaves its pool cleanly.
set -e
if [ -d /run/systemd/system ]; then
  systemctl stop decentllm-node.service || true
  if [ "$1" = remove ]; then
    systemctl disable -q decentllm-node.service || true
  fi
fi
