"""What a task is, as JSON types."""

from __future__ import annotations

from typing import Any

from dit_lens.tasks.evidence import BoardTask, declared


def describe_task(task: BoardTask) -> dict[str, Any]:
    """Summary, an example prompt, rules with weights, kinds of pairs, labels with roles, and the declared evidence.

    ``candidates`` is the largest number of candidate answers among a hundred instances, ``steps`` the fewest and the
    most necessary steps.
    """
    examples = task.sample(100, split="train")
    steps = [example.steps for example in examples]
    labels = task.labels(examples[:1], latent_frames=(task.frames + 1) // 2)
    return {
        "name": task.name,
        "summary": (type(task).__doc__ or "").strip().split("\n")[0],
        "size": task.size,
        "frames": task.frames,
        "prompt": examples[0].prompt,
        "rules": dict(task.weights),
        "kinds": dict(task.kinds),
        "candidates": max(len(example.candidates) for example in examples),
        "steps": [min(steps), max(steps)],
        "labels": {name: label.role for name, label in labels.items()},
        "evidence": list(declared(task)),
    }
