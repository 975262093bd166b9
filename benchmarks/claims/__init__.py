"""The project's claims about its scheduler, each measured on a pool of real processes over an emulated network."""
