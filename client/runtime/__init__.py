"""The torch worker: one process per device, frames in and frames out over an inherited socket, no network."""
