"""A whole pool in one process on simulated time: it plays nodes, links and users to the very same scheduler objects."""
