"""
Merge seeds
===========

The paper "Demystifying Video Reasoning" reports that averaging the hidden states of three seeds in the middle layers,
at the first step, makes a model reason better (benchmark score 0.685 to 0.716). Does it here? Three seeds of each maze
run in one batch. The first is the *receiver*: it gets the mean of the three updates. The other two are donors and run
unmodified, so a window of layers means something. Success with and without merging is compared maze by maze.

The comparison is at equal mazes and noise, not at equal compute: a merged run costs three forwards in the merged step.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import dit_lens as dl

MAZES = 48
SEEDS = 3
BATCH = 16
WINDOW = slice(2, 6)

model = dl.load_organism("maze")
task = dl.tasks.Maze(size=6, lengths=(9, 14))  # long paths, where there is room for improvement
mazes = task.sample(MAZES, seed=11)


# %%
# Rows 0, 3, 6 ... of a batch are the receivers.
rows = [maze for maze in mazes for _ in range(SEEDS)]


def solved(component: str | None) -> np.ndarray:
    """Strict success of the receiver of each maze."""
    merge = [] if component is None else [dl.Merge(dl.Sites(component, steps=0, layers=WINDOW), group=SEEDS)]
    outcome = []
    for run in model.runs(rows, batch=SEEDS * BATCH, interventions=merge):
        outcome.append(task.score(run.frames[::SEEDS], run.inputs[::SEEDS]).strict)
    return np.concatenate(outcome)


plain, delta, resid = solved(None), solved("delta"), solved("resid")

# %%
# Success with its Wilson interval.
rates = pd.DataFrame(
    [
        {"run": name, **dict(zip(("value", "low", "high"), dl.intervals.wilson(int(x.sum()), MAZES), strict=True))}
        for name, x in (("one seed", plain), ("delta merged", delta), ("resid merged", resid))
    ]
)
print(rates.round(3).to_string(index=False))
dl.plots.plot_success(rates, x="run")
plt.tight_layout()

# %%
# The paired difference is what counts: each maze is its own control. An interval of no width means that no maze
# changed, which 48 mazes can only say of effects larger than some percent.
for name, merged in (("delta", delta), ("resid", resid)):
    difference = dl.intervals.mean_interval(merged.astype(float) - plain.astype(float))
    gained, lost = int((merged & ~plain).sum()), int((plain & ~merged).sum())
    print(
        f"{name} merged in layers {WINDOW.start}-{WINDOW.stop - 1} at step 0, minus one seed: {difference}, n={MAZES}"
    )
    print(f"    mazes gained {gained}, mazes lost {lost}")
