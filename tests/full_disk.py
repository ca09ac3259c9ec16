"""A disk that is full."""

import resource
from contextlib import contextmanager


@contextmanager
def full_disk(size=100):
    """No file grows above so many bytes: a write fails as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
