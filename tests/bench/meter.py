"""Peak memory of the stages of a program: GPU memory on CUDA, tensor bytes on a CPU.

On CUDA the peak is torch.cuda.max_memory_allocated. On a CPU every allocation and
release that torch's profiler reports is replayed on top of what lived before: the
result counts bytes, so it is the same on every run and machine of one kind.

    with Meter("update") as meter:
        with meter.window("rollout"):
            ...          # its peak is meter.peaks["rollout"]
        ...              # all the rest is meter.peaks["update"]

Windows nest by name only: what runs inside one belongs to the innermost."""

import gc
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile, record_function

PREFIX = "stage:"


class Meter:
    """Peaks in bytes and seconds of named windows, and of what lies outside them."""

    def __init__(self, rest: str, outside: int = 0):
        """`outside` are bytes that lived before the program began and are not its."""
        self.rest, self.outside = rest, outside
        self.on_gpu = torch.cuda.is_available()
        self.peaks: dict[str, int] = defaultdict(int)
        self.seconds: dict[str, float] = defaultdict(float)

    def __enter__(self) -> "Meter":
        self.open = [self.rest]
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            self.before = live_bytes() - self.outside
            activities = [ProfilerActivity.CPU]
            self.profile = profile(activities=activities, profile_memory=True)
            self.profile.__enter__()
        self.started = time.monotonic()
        return self

    def __exit__(self, *error) -> None:
        self._close(self.open[-1])
        if not self.on_gpu:
            self.profile.__exit__(*error)
            if error == (None, None, None):
                self._replay()

    @contextmanager
    def window(self, name: str) -> Iterator[None]:
        self._close(self.open[-1])
        self.open.append(name)
        try:
            if self.on_gpu:
                yield
            else:
                with record_function(PREFIX + name):
                    yield
        finally:
            self._close(self.open.pop())

    def _close(self, name: str) -> None:
        """Book seconds, and on a GPU the peak, since the last change of windows."""
        if self.on_gpu:
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() - self.outside
            self.peaks[name] = max(self.peaks[name], peak)
            torch.cuda.reset_peak_memory_stats()
        now = time.monotonic()
        self.seconds[name] += now - self.started
        self.started = now

    def _replay(self) -> None:
        """The profiler's allocations in order, each booked on its innermost window."""
        events = self.profile.profiler.kineto_results.events()
        changes, spans = [], []
        for event in events:
            if event.name() == "[memory]":
                changes.append((event.start_ns(), event.nbytes()))
            elif event.name().startswith(PREFIX):
                name = event.name().removeprefix(PREFIX)
                spans.append((event.start_ns(), event.end_ns(), name))
        spans.sort(reverse=True)  # the innermost of nested windows starts last
        live = self.before
        for when, count in sorted(changes, key=lambda change: change[0]):
            live += count
            inside = (n for start, end, n in spans if start <= when <= end)
            name = next(inside, self.rest)
            self.peaks[name] = max(self.peaks[name], live)


def live_bytes() -> int:
    """Bytes of all tensors that live now, on the GPU where there is one."""
    gc.collect()
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    found = gc.get_objects()
    tensors = [item for item in found if issubclass(type(item), torch.Tensor)]
    tensors += [item.grad for item in tensors if item.is_leaf and item.grad is not None]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}
    return sum(storage.nbytes() for storage in storages.values())
