"""
Patch a maze
============

Two mazes with the same walls and start differ only in the goal. What one block computes for the one maze is put in the
place of what it computes for the other. Where does the path go then?
"""

import matplotlib.pyplot as plt
import numpy as np

import dit_lens as dl

LAYER = 4

model = dl.load_organism("maze")
task = dl.tasks.Maze()

# %%
# Take the first pair that the model solves on both sides: a patch into a run that fails anyway would show nothing.
for original, counterfactual in task.pairs(20, seed=0):
    clean = model.run([original, counterfactual], seed=0)
    if task.score(clean.frames, [original, counterfactual]).strict.all():
        break

# %%
# The donor's update at one layer, all steps; then the same at all layers, for the contrast.
updates = dl.Sites("delta")
donor = model.run(counterfactual, seed=0, interventions=[dl.Capture(updates)])
one = model.run(original, seed=0, interventions=[dl.Patch(donor, updates.at(layers=LAYER))])
every = model.run(original, seed=0, interventions=[dl.Patch(donor, updates)])

# %%
# Last frames. Patching every update of every block leaves only the embedding to the original.
figure, axes = plt.subplots(1, 4, figsize=(10, 3))
shown = {
    "original": clean.frames[0], "counterfactual": clean.frames[1],
    f"layer {LAYER} patched": one.frames[0], "all layers patched": every.frames[0],
}  # fmt: skip
for axis, (title, frames) in zip(axes, shown.items(), strict=True):
    axis.imshow(frames[-1])
    axis.set(title=title, xticks=[], yticks=[])
figure.tight_layout()

# %%
# The effect at one step, layer by layer: how far the patched x0hat of step 0 goes towards the donor's.
clean = model.run([original, counterfactual], seed=0, record=True, stop_after=0)
both = model.replay(clean, 0, [dl.Capture(dl.Sites("delta", steps=0))])
clean.captures = both.captures
for layer in range(model.layers):
    patch = dl.Patch(clean, dl.Sites("delta", steps=0, layers=layer), rows=(1, 0))
    moved = model.replay(clean, 0, [patch]).x0hat[0] - both.x0hat[0]
    way = both.x0hat[1] - both.x0hat[0]
    share = float((moved * way).sum() / way.square().sum())
    print(f"layer {layer}: {share:+.2f} {'#' * int(40 * np.clip(share, 0, 1))}")
