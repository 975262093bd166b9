#!/bin/sh
# After removing: the desktop forgets the application. After purging, the node service's data and settings go too.
# What a volunteer's own app stored is in their home folder: `decentllm clean` deletes it.
set -e
if command -v update-desktop-database > /dev/null; then
  update-desktop-database -q /usr/share/applications || true
fi
if command -v gtk-update-icon-cache > /dev/null; then
  gtk-update-icon-cache -q -t -f /usr/share/icons/hicolor || true
fi
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload || true
fi
if [ "$1" = purge ]; then
  rm -rf /var/lib/decentllm /etc/decentllm
  if getent passwd decentllm > /dev/null; then
    userdel decentllm
  fi
fi
