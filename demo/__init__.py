"""The two-command demo: a real pool of real processes on one machine."""
