"""Why a runtime cannot be prepared; each is one sentence that says what to do."""

from __future__ import annotations

from client.errors import ClientError


class ProvisionError(ClientError):
    """Codes: unsupported_platform, old_driver, no_tool, disk_full, cannot_download, wrong_hash, install_failed,
    self_test_failed, bad_lock."""

    title = "The runtime cannot be prepared"
