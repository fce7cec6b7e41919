"""
Write an intervention of your own
=================================

An intervention is a function of an activation and of where it was met. This page writes one in three lines, composes it
with the ones that ship, and asks with it how much each attention head of one layer matters to the answer.
"""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import torch

import dit_lens as dl

LAYER = 2
MAZES = 8

model = dl.load_organism("maze")
task = dl.tasks.Maze()
mazes = task.sample(MAZES, seed=2)


# %%
# A class with ``sites`` and a call is an intervention. Returning ``None`` leaves the activation as it is; what is
# returned takes its place. ``at`` carries the site with its sigma, the rows, and the model.
@dataclass(frozen=True)
class Dim:
    sites: dl.Sites
    factor: float = 0.5

    def __call__(self, activation, at):
        return self.factor * activation


# %%
# A decorated function does for what has no settings. This one turns what the attention adds upside down, but only while
# the state is mostly noise.
@dl.intervention(dl.Sites("attn", layers=LAYER))
def upside_down(activation, at):
    return activation.flip(2) if at.site.sigma > 0.8 else None


# %%
# Interventions compose in a list. At one site they act in the order of the list, across sites in the order in which the
# model executes; a capture sees what edits before it in the model have done.
keep = dl.Capture(dl.Sites("resid", layers=-1, steps=0), reduce="norm")
changed = model.run(mazes[0], seed=0, interventions=[Dim(dl.Sites("ffn", layers=3)), upside_down, keep])
plain = model.run(mazes[0], seed=0, interventions=[keep])
site = f"s00/cond/L{model.layers - 1:02d}/resid"
print(f"norm of the last residual, mean over tokens: {float(plain[site].mean()):.2f} before, "
      f"{float(changed[site].mean()):.2f} after")  # fmt: skip

# %%
# Now a question: which heads of the layer does the first step's answer need? Take each head's share away and see how
# far x0hat moves, in units of how far it moves without the whole attention. The run is recorded once; each replay
# computes only what lies behind the layer.
before = dl.Capture(dl.Sites("resid", steps=0, layers=LAYER - 1, stream="all"))
known = model.run(mazes, seed=0, record=True, stop_after=0, interventions=[before])


def moved(*interventions):
    """Distance that x0hat of step 0 moves, for every maze."""
    replay = model.replay(known, 0, interventions, from_layer=LAYER)
    return (replay.x0hat - own.x0hat).flatten(1).norm(dim=1)


own = model.replay(known, 0)
everything = moved(dl.Ablate(dl.Sites("attn", layers=LAYER)))
heads = known.geometry.layer(LAYER).heads["video"]
shares = torch.stack(
    [moved(dl.Ablate(dl.Sites("head", layers=LAYER, heads=h))) / everything for h in range(heads)]
).numpy()

# %%
# One point is one maze, the bar is their mean. The shares need not sum to one: what follows the layer is not linear.
figure, axis = plt.subplots(figsize=(5, 3.2))
axis.bar(range(heads), shares.mean(axis=1), color="0.8")
for head, values in enumerate(shares):
    axis.plot(np.full(MAZES, head), values, "k.", alpha=0.5)
axis.set(xlabel=f"head of layer {LAYER}", ylabel="share of the attention's effect", xticks=range(heads), ylim=(0, None))
figure.tight_layout()
print("mean share by head:", ", ".join(f"{share:.2f}" for share in shares.mean(axis=1)))
