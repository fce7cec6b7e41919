"""Peak memory of a generation, in bytes of tensors.

On the CPU every block that torch's allocator hands out or takes back is counted, through the memory events of torch's
profiler: results, temporaries inside operators and workspaces, whoever asked for them. tracemalloc sees none of these,
and the resident size of the process has the allocator's habits in it. Not counted: Python's own objects, buffers that
libraries take from the system by themselves, and what was there before (it is on both sides of a pair). On a CUDA
device it is the caching allocator's own count, which rounds every tensor up to 512 bytes.

A diffusers pipeline that is given ``callback_on_step_end`` reads ``locals()`` at the end of a step. Before Python 3.13
the frame keeps that dict, and with it the last step's input and predictions, until ``locals()`` is called again: two or
three tensors of the state's size that a pipeline without a callback has let go. Peaks are compared with both.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(function: Callable[[], Any], device: str = "cpu") -> int:
    """Most bytes of tensors alive at one time while ``function`` runs, above those alive before."""
    gc.collect()
    return _peak_on_cuda(function) if device == "cuda" else _peak_on_cpu(function)


def python_peak_bytes(function: Callable[[], Any]) -> int:
    """Most bytes of Python objects and numpy arrays alive at one time while ``function`` runs, as tracemalloc sees."""
    gc.collect()
    tracemalloc.start()
    try:
        kept = function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        del kept


def _peak_on_cuda(function: Callable[[], Any]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _peak_on_cpu(function: Callable[[], Any]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        kept = function()
    del kept
    results: Any = recorded.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    changes: list[int] = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(accumulate(changes, initial=0))
