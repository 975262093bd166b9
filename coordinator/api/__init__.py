"""HTTP: the OpenAI-compatible API, the pool's state, weights for nodes, pages. OpenAI's types stop here."""
