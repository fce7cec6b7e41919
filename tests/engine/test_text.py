"""Positions of a text that attention does not read: nothing is done there without a word."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

import dit_lens as dl
from dit_lens.errors import DonorError, SiteError
from dit_lens.families.tiny.pipelines import TINY
from tests.subjects import Edit

#: Families whose text is padded, and whose attention leaves the padding out.
PADDED = ["hunyuanvideo", "hunyuanvideo-1.5", "mochi"]
WHOLE = ["cogvideox-1.0", "cogvideox-1.5"]
TEXT = dl.Sites("resid", steps=0, layers=0, stream="text", branches="cond")


@cache
def built(name: str) -> tuple[dl.VideoDiT, dict[str, Any]]:
    tiny = TINY[name]
    model = dl.VideoDiT(tiny.build())
    model.pipeline.set_progress_bar_config(disable=True)
    return model, {**tiny.settings, "num_inference_steps": 2}


def prompts(name: str) -> tuple[str, str]:
    """A long and a short one."""
    long = TINY[name].inputs()[0]
    long = long if isinstance(long, str) else long["prompt"]
    return long, long.split()[0]


def run(name: str, prompt: Any, *interventions: Any, **more: Any) -> dl.Run:
    model, settings = built(name)
    return model.run(prompt, more.pop("seed", 3), decode=False, interventions=interventions, **{**settings, **more})


def words(name: str, prompt: Any) -> torch.Tensor:
    return run(name, prompt, dl.Capture(TEXT)).text_valid["cond"]


def at(positions: Any) -> dl.Sites:
    return TEXT.at(tokens=dl.Tokens(positions=positions))


@pytest.mark.parametrize("name", PADDED)
def test_the_mask_tells_what_attention_reads(name: str) -> None:
    """Known by experiment: an edit of a position changes the video if and only if it is valid."""
    prompt = prompts(name)[0]
    valid = words(name, prompt)
    assert valid.dtype == torch.bool
    assert 0 < int(valid.sum()) < valid.numel()
    clean = run(name, prompt).latents
    # Through a selection of all positions, which is not refused.
    for position in range(valid.shape[1]):
        if position > 3 and position % 7:
            continue

        def push(x: torch.Tensor, where: dl.At, position: int = position) -> torch.Tensor:
            pushed = x.clone()
            pushed[:, position] += 10
            return pushed

        changed = not torch.equal(run(name, prompt, Edit(TEXT, push)).latents, clean)
        assert changed == bool(valid[0, position]), position


@pytest.mark.parametrize("name", PADDED)
def test_a_selection_of_padding_alone_is_refused(name: str) -> None:
    prompt = prompts(name)[0]
    valid = words(name, prompt)[0]
    hidden = (~valid).nonzero().flatten().tolist()
    kept = valid.nonzero().flatten().tolist()
    mask = ~valid
    for site in (at(hidden[0]), at(hidden), at(-1), TEXT.at(tokens=dl.Tokens(mask=mask.numpy()))):
        for intervention in (Edit(site, lambda x, where: x * 0), dl.Capture(site), dl.Ablate(site)):
            with pytest.raises(SiteError, match="select padding alone in row 0, which attention does not read"):
                run(name, prompt, intervention)
    found = run(name, prompt, dl.Capture(at([kept[-1], hidden[0]])))
    assert next(iter(found.captures[""].values())).shape[1] == 2


@pytest.mark.parametrize("name", PADDED)
def test_valid_selects_the_words(name: str) -> None:
    prompt = prompts(name)[0]
    valid = words(name, prompt)[0]
    site = TEXT.at(tokens=dl.Tokens(text="valid"))
    whole, part = run(name, prompt, dl.Capture(TEXT)), run(name, prompt, dl.Capture(site))
    place = next(iter(whole.captures[""]))
    assert torch.equal(part[place], whole[place][:, valid])
    zeroed = run(name, prompt, dl.Ablate(site)).latents
    assert torch.equal(zeroed, run(name, prompt, dl.Ablate(TEXT)).latents)
    assert not torch.equal(zeroed, whole.latents)
    # Rows of other words have no rectangle in common.
    both = list(prompts(name))
    assert (words(name, both).sum(dim=1).unique()).numel() == 2
    with pytest.raises(SiteError, match=r"the rows have \d+, \d+ words in the text"):
        run(name, both, dl.Capture(site))
    shared = run(name, both, dl.Capture(TEXT.at(tokens=dl.Tokens(text="shared"))))
    assert shared[place].shape[1] == int(shared.text_valid["cond"].all(dim=0).sum())


@pytest.mark.parametrize("name", PADDED)
def test_reductions_leave_the_padding_out(name: str) -> None:
    both = list(prompts(name))
    whole = run(name, both, dl.Capture(TEXT))
    place = next(iter(whole.captures[""]))
    valid, activation = whole.text_valid["cond"], whole[place]
    mean = run(name, both, dl.Capture(TEXT, reduce="token_mean"))[place]
    for row in range(2):
        torch.testing.assert_close(mean[row], activation[row, valid[row]].mean(dim=0))
        assert not torch.allclose(mean[row], activation[row].mean(dim=0))
    common = valid.all(dim=0)
    few = run(name, both, dl.Capture(TEXT, reduce=dl.reduce.tokens(2)))[place]
    chosen = activation[:, common][:, dl.reduce.tokens(2).indices(int(common.sum()))]  # type: ignore[attr-defined]
    assert torch.equal(few, chosen)


@pytest.mark.parametrize("name", PADDED)
def test_donors_of_another_length_are_refused(name: str) -> None:
    long, short = prompts(name)
    one, other = (run(name, p, dl.Capture(TEXT)) for p in (long, short))
    counts = [int(r.text_valid["cond"].sum()) for r in (one, other)]
    assert counts[0] > counts[1]
    for patch in (dl.Patch(other, TEXT), dl.Patch(other, TEXT.at(tokens=dl.Tokens(text="valid")))):
        with pytest.raises(DonorError, match=rf"the donor's text has {counts[1]} words .*, this run's {counts[0]}"):
            run(name, long, patch)
    with pytest.raises(DonorError, match="the donor's text has"):
        run(name, short, dl.Patch(one, TEXT))
    shared = (one.text_valid["cond"] & other.text_valid["cond"])[0].nonzero().flatten().tolist()
    patched = run(name, long, dl.Patch(other, at(shared)))
    assert not torch.equal(patched.latents, one.latents)
    assert torch.equal(run(name, long, dl.Patch(one, TEXT)).latents, one.latents)
    with pytest.raises(DonorError, match="the reference's text has"):
        run(name, long, dl.Ablate(TEXT, mode="mean", reference=other))
    with pytest.raises(DonorError, match="the donor's text has"):
        run(name, [long, short], dl.Patch("rows", TEXT, rows=[1, 0]))
    with pytest.raises(DonorError, match="the reference's text has"):
        run(name, [long, short], dl.Ablate(TEXT, mode="resample"))


@pytest.mark.parametrize("name", PADDED)
def test_a_mean_over_tokens_is_one_over_words(name: str) -> None:
    long, short = prompts(name)
    reference = run(name, short, dl.Capture(TEXT))
    place = next(iter(reference.captures[""]))
    words_of = reference[place][reference.text_valid["cond"]]
    mean = dl.Ablate(TEXT, mode="mean", reference=reference, over="tokens")
    seen: list[torch.Tensor] = []
    run(name, long, mean, Edit(TEXT, lambda x, where: seen.append(x.clone())))
    torch.testing.assert_close(seen[0], words_of.mean(dim=0).expand_as(seen[0]))


@pytest.mark.parametrize("name", WHOLE)
def test_where_attention_reads_all_positions_nothing_is_refused(name: str) -> None:
    long, short = prompts(name)
    found = run(name, long, dl.Capture(TEXT))
    assert found.text_valid == {}
    place = next(iter(found.captures[""]))
    count = found[place].shape[1]
    assert run(name, long, dl.Capture(at(-1)))[place].shape[1] == 1
    assert run(name, long, dl.Capture(TEXT.at(tokens=dl.Tokens(text="valid"))))[place].shape[1] == count
    donor = run(name, short, dl.Capture(TEXT))
    assert not torch.equal(run(name, long, dl.Patch(donor, TEXT)).latents, found.latents)


def test_every_text_site_of_every_padded_family_knows_its_padding() -> None:
    for name in PADDED:
        prompt = prompts(name)[0]
        model, settings = built(name)
        geometry = model.geometry(prompt, **settings)
        components = dict.fromkeys(c for kind in geometry.kinds for c in kind.components.get("text", ()))
        for component in ("embed", *components):
            site = dl.Sites(component, steps=0, stream="text", branches="cond")
            found = run(name, prompt, dl.Capture(site, reduce="token_mean"), dl.Capture(site, name="whole"))
            for place, mean in found.captures[""].items():
                whole = found.captured("whole")[place]
                torch.testing.assert_close(mean, whole[found.text_valid["cond"]].mean(dim=0, keepdim=True))


@pytest.mark.parametrize("count", [1, 5, 40])
@pytest.mark.parametrize("name", ["hunyuanvideo", "cogvideox-1.5"])
def test_a_mask_of_another_length_is_refused(name: str, count: int) -> None:
    site = TEXT.at(tokens=dl.Tokens(mask=[True] * count))
    with pytest.raises(SiteError, match=rf"a token mask of shape \({count},\) does not fit a text of \d+ positions"):
        run(name, prompts(name)[0], dl.Capture(site))


def test_selections_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(SiteError, match="text='words': 'all', 'valid' or 'shared'"):
        dl.Tokens(text="words")
    with pytest.raises(SiteError, match="text='valid' and positions"):
        dl.Tokens(text="valid", positions=[1])
    tokens = dl.Tokens(text="valid")
    assert dl.Tokens.from_json(tokens.to_json()) == tokens
    assert str(tokens) == "text=valid"


#: What differs in number between the rows, all of them words of both.
OWN = [[0, 1, 2], [1]]


def edit(name: str, sites: dl.Sites, donor: dl.Run, rows: list[int]) -> Any:
    width = donor[SITE].shape[-1]
    return {
        "zero": dl.Ablate(sites),
        "mean": dl.Ablate(sites, "mean", donor),
        "patch": dl.Patch(donor, sites, rows=rows),
        "noise": dl.Noise(sites, "add"),
        "steer": dl.Steer(sites, torch.linspace(-1, 1, width), unit="norm"),
    }[name]


SITE = "s00/cond/L00/resid/text"


@pytest.mark.parametrize("intervention", ["zero", "mean", "patch", "noise", "steer"])
@pytest.mark.parametrize("name", [*PADDED, *WHOLE])
def test_positions_of_each_row_do_to_it_what_they_do_to_it_alone(name: str, intervention: str) -> None:
    """Prompts of one length, for a donor's words must stand at the same positions."""
    long = prompts(name)[0]
    both = [long, " ".join(reversed(long.split()))]
    donor = run(name, both[::-1], dl.Capture(TEXT), seed=[7, 8])
    whole = run(name, both, seed=[3, 4]).latents
    edited = run(name, both, edit(intervention, at(OWN), donor, [0, 1]), seed=[3, 4]).latents
    for row in range(2):
        alone = run(name, both[row], edit(intervention, at(OWN[row]), donor, [row]), seed=3 + row).latents
        own = edited[row : row + 1]
        torch.testing.assert_close(own, alone, rtol=2e-3, atol=2e-3 * float(alone.abs().max()))
        assert not torch.equal(own, whole[row : row + 1])
