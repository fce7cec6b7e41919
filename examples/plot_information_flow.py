"""
Where information moves
=======================

Two mazes differ only in where the goal is. In the input, the difference is at the two goals. In the answer, it is along
the two paths. In which blocks does it get from the one place to the other?
"""

import matplotlib.pyplot as plt

import dit_lens as dl

model, task = dl.load_organism("maze"), dl.tasks.Maze()

# %%
# Take the first pair that the model solves on both sides.
for pair in task.pairs(20, seed=0):
    solved = task.score(model.run(list(pair), seed=[0, 0]).frames, list(pair)).strict
    if solved.all():
        break

# %%
# The flow of this pair finds the source, where the embeddings of the two inputs differ, and the target, where the right
# answers do. The autoencoder mixes neighbouring places and frames, so the source is larger than two cells.
one = dl.information_flow(model, task, [pair], parts=("groups",)).shown
print(f"{one.source.sum()} tokens of the source, {one.target.sum()} of the target, of {one.source.size}")

# %%
# By hand first. At step 0, give the original the other run's residual stream after one block, at some tokens alone.
# After block 1 those of the source bring the other path, and those of the target do next to nothing. After block 6 it
# is the reverse: of the source only the goal itself is drawn in its other place.
clean = model.run(list(pair), seed=[0, 0], record=True, stop_after=0)
streams = dl.Sites("resid", steps=0)
kept = model.replay(clean, 0, [dl.Capture(streams)])
clean.captures = kept.captures

estimates = {"original": kept.x0hat[:1], "counterfactual": kept.x0hat[1:]}
for layer in (1, 6):
    for name, mask in (("source", one.source), ("target", one.target)):
        sites = streams.at(layers=layer, tokens=dl.Tokens(mask=mask))
        patch = dl.Patch(clean, sites, rows=(1, 0))
        estimates[f"{name} exchanged\nafter block {layer}"] = model.replay(clean, 0, [patch]).x0hat[:1]

figure, axes = plt.subplots(1, len(estimates), figsize=(12, 2.6))
for axis, (title, x0hat) in zip(axes, estimates.items(), strict=True):
    axis.imshow(model.decode(x0hat)[0, -1])
    axis.set(title=title, xticks=[], yticks=[])
figure.tight_layout()

# %%
# Now everywhere, over sixteen pairs and in both directions. What leaves the source in a block, and what reaches the
# target in it, sum over the blocks to the whole difference.
flow = dl.information_flow(model, task, 16, parts=("groups",))
print(flow)
print(flow.per_block[["layer", "departure", "arrival"]].round(2).to_string(index=False))

# %%
# The picture of it. ``flow.animate("flow.gif")`` makes a film: one scene after each block.
flow.plot()
