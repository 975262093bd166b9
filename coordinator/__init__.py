"""The pool's side: scheduler, sessions, API, chat page and weight mirror, one asyncio process."""
