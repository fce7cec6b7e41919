"""
Four behaviours, as numbers
===========================

"Demystifying Video Reasoning" sees four behaviours in pictures of x0hat: working memory, perception before action,
self-correction and multi-path. Here each is measured on the shipped model, on few instances so that it is quick.
``dit-lens behaviours`` prints the same with more of them, and the page on behaviours has those figures. What a small
model does not show is reported as such.
"""

import matplotlib.pyplot as plt

import dit_lens as dl

CONFIG = dl.behaviours.BehaviourConfig(memory_instances=72, order_instances=36, replicates=200, probe_steps=[0, 4, 8])
COUNT = 24

model = dl.load_organism("puzzles")

# %%
# Working memory
# --------------
# In *permanence* an object goes behind a wall. Can its place and its colour be read from the latent frames in which it
# is not seen? The picture shows skill above the best of the controls: shuffled labels, the model's input at that token,
# position, random weights, majority.
memory = dl.behaviours.working_memory(model, dl.tasks.Permanence(), CONFIG)
print(memory)
figure, axes = plt.subplots(1, 2, figsize=(11, 3), layout="constrained")
for axis, target in zip(axes, ("position", "colour"), strict=True):
    memory.plot(axis, target=target)

# %%
# Perception before action
# ------------------------
# From which step on are start and goals decodable, and from which the path? In these two pictures all of them are there
# at step 0 already, so there is no order of steps to be seen. The excess falls at the end because the model's
# input then shows the drawn path itself.
task = dl.tasks.Maze(4, goals=2)
chain = dl.behaviours.decoded_chain(model, task, COUNT, seed=1)
order = dl.behaviours.perception_before_action(model, task, CONFIG, chain=chain)
for measure in ("decodable", "half", "drawn"):
    print(f"{measure}: {order.verdict(measure)}, {order.before(measure):.2f} of replicates")
figure, axes = plt.subplots(1, 2, figsize=(12, 3.2), layout="constrained")
order.plot(axes[0])
order.plot(axes[1], evidence="x0hat")

# %%
# Self-correction
# ---------------
# How often does a readable answer go from wrong to right, and how often from right to wrong? An answer that only takes
# shape is neither. *Corrected* is wrong when it is first readable and right at the last step, *spoiled* the reverse.
pattern = dl.tasks.Pattern()
puzzle = dl.behaviours.decoded_chain(model, pattern, COUNT, seed=1)
correction = dl.behaviours.self_correction(model, pattern, chain=puzzle)
for change, share in correction.ever().items():
    print(f"{change}: {share} of {COUNT}")
print(correction.matrix(0, -1))
plt.figure(figsize=(7, 3), layout="constrained")
correction.plot(plt.gca())

# %%
# Multi-path
# ----------
# How many candidates are drawn at once? Of a blend of two symbols in the gap both are alive.
paths = dl.behaviours.multi_path(model, pattern, chain=puzzle)
print({name: str(share) for name, share in paths.ever().items()})
plt.figure(figsize=(5, 3), layout="constrained")
paths.plot(plt.gca())
