#!/bin/sh
# After installing: the desktop learns of the application and of decentllm:// links.
set -e
# The node service has a user of its own (it does not run until the administrator enables it).
if ! getent passwd decentllm > /dev/null; then
  useradd --system --home-dir /var/lib/decentllm --shell /usr/sbin/nologin decentllm
fi
if command -v update-desktop-database > /dev/null; then
  update-desktop-database -q /usr/share/applications || true
fi
if command -v gtk-update-icon-cache > /dev/null; then
  gtk-update-icon-cache -q -t -f /usr/share/icons/hicolor || true
fi
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload || true
fi
