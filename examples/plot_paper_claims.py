"""
Three claims of the paper
=========================

The paper "Demystifying Video Reasoning" makes claims about very large models. Here three of its experiments are
repeated on the shipped model. What it shows says nothing yet about large models, and what it does not show is reported
as such.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

import dit_lens as dl

MAZES = 48
PAIRS = 16

model = dl.load_organism("maze")
task = dl.tasks.Maze(size=6)
mazes = task.sample(MAZES, seed=21)

# %%
# Chain of steps
# --------------
# Early estimates of the clean video are said to hold several answers at once. Counted in the last frame: cells whose
# centre shows more than .15 and less than .85 of trail or agent (undecided), and branches: inked cells off the run's
# own final trail that a legal move joins to it.
chain = dl.behaviours.decoded_chain(model, task, mazes)
paths = dl.behaviours.multi_path(model, task, chain=chain).table.set_index("measure")
for measure in ("undecided", "branches"):
    for row in paths.loc[measure].itertuples():
        interval = f"{row.value:.2f} [{row.low:.2f}, {row.high:.2f}]"
        print(f"step {row.step}, sigma {row.sigma:.2f}: {measure} a maze {interval}, n={row.n}")
axis = dl.plots.plot_success(paths.loc["undecided"], x="step")
axis.set_ylabel("undecided cells a maze")

# %%
# Token energy
# ------------
# The norm of the residual stream per token is said to follow the background in early layers and the moving foreground
# from the middle on. Here: mean norm on the cells of the true path over the mean norm on all other cells, last latent
# frame, step 0.
capture = dl.Capture(dl.Sites("resid", steps=0, tokens=dl.Tokens(frames=-1)), reduce=lambda x: x.norm(dim=-1))
runs = list(model.runs(mazes, interventions=[capture], stop_after=0))
on_path = task.labels(mazes, 5)["on_path"].values[:, -1]
energy = np.concatenate([run.stack("resid", step=0)[:, :, 0].numpy() for run in runs], axis=1)
ratios = []
for layer, norms in enumerate(energy):
    ratio = np.array([n[p].mean() / n[~p].mean() for n, p in zip(norms, on_path, strict=True)])
    ratios += [{"layer": layer, "ratio": r} for r in ratio]
    print(f"layer {layer}: energy on the path over energy elsewhere {dl.intervals.mean_interval(ratio)}, n={MAZES}")
plt.figure()
sns.lineplot(pd.DataFrame(ratios), x="layer", y="ratio", marker="o", seed=0).axhline(1, color="gray", linewidth=0.8)

# %%
# Layer-wise swap
# ---------------
# Swapping one layer's visual tokens at the first step is said to flip the answer at a particular layer. A swap of the
# whole residual stream hands over everything at any layer, so its share is one everywhere and localises nothing. The
# layer's own update does localise.
swaps = []
for component in ("resid", "delta"):
    sweep = dl.patching_sweep(model, task, PAIRS, sites=dl.Sites(component, steps=0), flip_pairs=0, seed=21)
    table = sweep.table[sweep.table["measure"] == "share"]
    swaps.append(table)
    for row in table.itertuples():
        print(f"{component}, layer {row.layer}: share {row.value:.2f} [{row.low:.2f}, {row.high:.2f}], n={row.n} pairs")
plt.figure()
sns.lineplot(pd.concat(swaps), x="layer", y="value", hue="component", marker="o").set_ylabel("share")
