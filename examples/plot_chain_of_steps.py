"""
Chain of steps
==============

A video diffusion transformer is said to reason along its denoising steps: early estimates of the clean video hold
several answers at once, later ones settle on one. The step lens decodes that estimate, x0hat, at every step. Here are
four mazes; the picture shows the last video frame, where the whole path should be drawn.
"""

import dit_lens as dl

MAZES = 4

model = dl.load_organism("maze")
task = dl.tasks.Maze(size=6, lengths=(8, 14))
mazes = task.sample(MAZES, seed=3)

# %%
# One recorded run for all four. Recording changes nothing: the frames are those of the plain pipeline, bit for bit.
run = model.run(mazes, seed=list(range(MAZES)), record=True)
lens = dl.step_lens(model, run)
scores = task.score(run.frames, mazes)

# %%
# Steps go from left to right, with their sigma.
titles = [f"{m.length} moves, {'solved' if ok else 'failed'}" for m, ok in zip(mazes, scores.strict, strict=True)]
dl.plot_chain_of_steps(lens.decode(model), lens.sigmas, titles)

# %%
# How much of the final trail is visible at each step: intersection over union, mean over the four mazes.
final = task.read_answer(run.frames[:, -1], mazes).marks
for step, frames in enumerate(lens.decode(model)):
    shown = task.read_answer(frames[:, -1], mazes).marks
    overlap = dl.tasks.agreement(shown, final)
    print(f"step {step}, sigma {lens.sigmas[step]:.2f}: overlap with the final trail {overlap.mean():.2f}")
