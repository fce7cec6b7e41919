"""
Energy and CKA
==============

Three looks at the residual stream of the shipped maze model that need no labels: how long the tokens are, how alike the
layers are, and what the tokens look like in one basis for all layers and steps. The task's labels come in only to ask
whether the cells of the path stand out.
"""

import matplotlib.pyplot as plt

import dit_lens as dl

MAZES = 8
FIRST, LAST = 0, 9

model = dl.load_organism("maze")
task = dl.tasks.Maze(size=6)
mazes = task.sample(MAZES, seed=3)
seeds = list(range(MAZES))

# %%
# Token energy by layer and latent frame. The first frame is the picture that the model is given.
path = task.labels(mazes, latent_frames=5)["on_path"].values
lens = dl.energy(model, mazes, sites=dl.Sites(steps=[FIRST, LAST]), seed=seeds, regions={"path": path})
figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for axis, step in zip(axes, (FIRST, LAST), strict=True):
    lens.plot(axis, step=step)

# %%
# Do the cells of the path have more energy than the others? The control gives every maze the path of another one.
late = lens.table.query(f"measure == 'ratio' and step == {LAST}")
axis = dl.plots.curves(late, "layer", "value", "control")
axis.axhline(1, color="0.6", linewidth=1)
axis.set(ylabel="energy of the path over the rest", title=f"step {LAST}, {MAZES} mazes")
for row in late[late["control"] == "none"].itertuples():
    print(f"layer {row.layer}: {row.value:.2f} [{row.low:.2f}, {row.high:.2f}], n = {row.n}")

# %%
# How alike are the layers, up to rotation and scale? A sample is a token here; the interval leaves out whole mazes.
alike = dl.cka(dl.cka_features(model, mazes, sites=dl.Sites(steps=FIRST), seed=seeds))
alike.plot()
for layer in range(model.layers - 1):
    value, low, high = (of[0, layer, 0, layer + 1] for of in (alike.values, alike.low, alike.high))
    print(f"layers {layer} and {layer + 1}: {value:.2f} [{low:.2f}, {high:.2f}]")

# %%
# The tokens of the last latent frame in one basis: layers down, steps across, three directions as colours. Beside it
# the true path.
maps = dl.pca_map(model, mazes, sites=dl.Sites(steps=[0, 3, 6, 9]), seed=seeds)
figure, axes = plt.subplots(1, 2, figsize=(7, 8), width_ratios=(2, 1), layout="constrained")
maps.plot(axes[0], row=0)
axes[1].imshow(path[0, -1], cmap="gray")
axes[1].set(title="on the path", xticks=[], yticks=[])
shares = ", ".join(f"{share:.0%}" for share in maps.basis.explained)
print(f"of the variance of all layers and steps the three directions hold {shares}")
