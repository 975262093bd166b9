"""Schedulers compared in the coordinator's own simulator."""
