"""What faults cost: real coordinators, agents and workers, real signals, answers compared token for token."""
