"""The model: loading it, its inputs, and a group that shares one prompt."""
