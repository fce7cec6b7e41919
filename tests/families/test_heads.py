"""What one attention head adds costs one matrix product and the memory of its result."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import dit_lens as dl
from dit_lens.families.base import Met
from dit_lens.families.common import head_share
from dit_lens.families.hunyuan import SINGLE
from dit_lens.families.tiny.pipelines import TINY
from tests.benchmarks.memory import peak_bytes

TOKENS, HEADS, EACH = 1500, 16, 8
WIDTH = HEADS * EACH
#: Bytes of one head's share, float32.
ONE = TOKENS * WIDTH * 4


def test_one_head_takes_the_memory_of_one_head() -> None:
    z, projection, gate = torch.randn(1, TOKENS, WIDTH), nn.Linear(WIDTH, WIDTH), torch.randn(1, 1, WIDTH)
    with torch.no_grad():
        # The product, and the product under its gate; all heads at once would be 16 times as much.
        assert peak_bytes(lambda: head_share(z, projection, HEADS, 3, gate)) <= 2.5 * ONE
        total = sum(head_share(z, projection, HEADS, head) for head in range(HEADS)) + projection.bias
    torch.testing.assert_close(total, projection(z), atol=1e-4, rtol=0)


def test_one_head_of_a_joint_single_block_takes_the_memory_of_one_head() -> None:
    """Attention and feed-forward share one projection there."""
    projection = nn.Linear(WIDTH + 4 * WIDTH, WIDTH)
    module = SimpleNamespace(proj_out=projection, attn=SimpleNamespace(heads=HEADS))
    met = Met(module, {}, TOKENS)
    met.see("norm.output", (None, torch.randn(1, WIDTH)))
    met.see("proj_out.input", torch.randn(1, TOKENS + 5, 5 * WIDTH))
    attention = next(t for t in SINGLE.terms if (t.component, t.stream) == ("attn", "video"))
    assert attention.heads is not None
    with torch.no_grad():
        assert peak_bytes(lambda: attention.heads(met, 3)) <= 2.5 * ONE  # type: ignore[misc]
        total = sum(attention.heads(met, head) for head in range(HEADS))
        torch.testing.assert_close(total, attention.value(met), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["wan2.1-t2v", "hunyuanvideo", "cogvideox-1.5", "cosmos"])
def test_only_wanted_heads_are_computed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = TINY[name]
    model = dl.VideoDiT(tiny.build(), defaults=tiny.settings)
    model.pipeline.set_progress_bar_config(disable=True)
    asked: list[int] = []
    for _, block in model.architecture.stacks:
        for term in block.terms:
            if term.heads is not None:
                own = term.heads
                monkeypatch.setitem(
                    term.__dict__, "heads", lambda met, head, own=own: asked.append(head) or own(met, head)
                )
    sites = dl.Sites("head", steps=0, layers=0, heads=1)
    found = model.run(tiny.inputs()[0], 3, decode=False, interventions=[dl.Capture(sites)])
    assert set(asked) == {1}
    assert len(asked) <= len({s.branch for s in found.captures[""]})  # one for all branches of a call
