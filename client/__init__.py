"""The volunteer's side: the tray app, the agent and the torch worker, three kinds of process."""
