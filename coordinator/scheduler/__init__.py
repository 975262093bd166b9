"""Who holds which layers (phase 1) and which chain serves each request (phase 2). Pure: events in, commands out."""

from coordinator.scheduler.scheduler import Scheduler

__all__ = ["Scheduler"]
