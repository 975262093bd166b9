"""The pool's models: where they come from, what their files hold, their manifest and their tokenizer."""
