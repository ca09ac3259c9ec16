"""Asking the models: answers, what they see, where they look, what they reason."""
