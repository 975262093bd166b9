"""The agent: owns the sockets, the downloads and the workers. asyncio, no torch, no Qt; one per machine."""
