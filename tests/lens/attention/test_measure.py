"""Softmaxes in chunks: memory, masks, shared keys and half precision, on random queries and keys."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dit_lens.lens.attention.measure import Axis, Softmax, Sums
from tests.benchmarks import attention as attention_benchmark
from tests.benchmarks.memory import peak_bytes

EXACT = 1e-6


def softmax_of(
    query: Tensor, key: Tensor, mask: Tensor | None = None, grid: tuple[int, int, int] = (4, 1, 1)
) -> Softmax:
    count = query.shape[1]
    at = torch.arange(count)
    frames = at // (count // grid[0])
    return Softmax(query, key, mask, query.shape[-1] ** -0.5, at, frames, at, torch.arange(key.shape[1]))


def test_memory_grows_with_the_tokens_and_not_with_their_square() -> None:
    """Bytes that torch's allocator hands out; with the whole map they would grow sixteenfold."""
    budget = 2**21

    def peak(tokens: int) -> int:
        generator = torch.Generator().manual_seed(0)
        query, key = (torch.randn(2, tokens, 16, generator=generator) for _ in "qk")
        grid = (4, 1, tokens // 4)
        sums = Sums(2, Axis(grid, tokens, 0), tokens, False, query.device)
        softmax = softmax_of(query, key, grid=grid)
        return peak_bytes(lambda: sums.add(softmax, torch.arange(2), budget))

    small, large = peak(512), peak(2048)
    assert small > budget / 5  # the budget is used
    assert large < 1.5 * small
    assert large < budget
    assert large < 2048**2  # a map of one head in single bytes


def test_the_memory_benchmark_compares_two_ways_to_one_result() -> None:
    rows = attention_benchmark.measured([64, 256], budget=2**16)
    assert [row["tokens"] for row in rows] == [64, 256]
    assert max(row["difference"] for row in rows) < EXACT
    assert rows[1]["whole map"] > 12 * rows[0]["whole map"]
    assert rows[1]["lens"] < rows[1]["whole map"]


@pytest.mark.parametrize("kind", ["none", "boolean", "additive", "by head"])
def test_masks_scales_and_shared_keys_are_those_of_torch(kind: str) -> None:
    """Against torch's own attention, with two heads of queries to each head of keys."""
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(h, 8, 4, generator=generator) for h in (4, 2, 2))
    open_ = torch.rand(1, 8, 8, generator=generator) > 0.3
    masks: dict[str, Tensor | None] = {
        "none": None, "boolean": open_, "additive": torch.where(open_, 0.0, -10000.0), "by head": open_.expand(4, 8, 8)
    }  # fmt: skip
    mask = masks[kind]
    sums = Sums(4, Axis((4, 1, 2), 8, 0), 8, True, query.device)
    sums.add(softmax_of(query, key, mask), torch.arange(4), 2**20)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query[None], key[None], value[None], attn_mask=None if mask is None else mask[None], enable_gqa=True
    )[0]
    assert sums.maps is not None
    assert (sums.maps @ value.repeat_interleave(2, 0) - expected).abs().max() < EXACT
    count = (open_ if mask is not None else torch.ones_like(open_)).sum(-1).double()
    share = sums.entropy.new_zeros(4, 8)
    share += torch.special.entr(sums.maps.double()).sum(-1) / count.log()
    assert (sums.share - share.view(4, 4, 2).sum(-1)).abs().max() < EXACT


def test_half_precision_is_reduced_in_single() -> None:
    generator = torch.Generator().manual_seed(2)
    query, key = (torch.randn(1, 8, 4, generator=generator).bfloat16() for _ in "qk")
    sums = Sums(1, Axis((4, 1, 2), 8, 0), 8, True, query.device)
    sums.add(softmax_of(query, key), torch.arange(1), 2**20)
    exact = (query.double() @ key.double().mT / 2).softmax(-1)
    assert sums.maps is not None
    assert (sums.maps - exact).abs().max() < EXACT
