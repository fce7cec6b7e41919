"""What videos score that cannot have solved the task."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dit_lens.tasks.evidence import BoardTask


def null_floors(task: BoardTask, count: int, seed: int) -> pd.DataFrame:
    """Scores of the truth and of videos that cannot have solved the task.

    "frozen": the first frame throughout. "noise": uniform random pixels. "shuffled": the true frames in random order.
    "counterfactual": the true video of the other side of a pair, for each kind of pair; the worst kind counts.

    Returns
    -------
    DataFrame with columns video, kind, total, strict, n
    """
    rng = np.random.default_rng(seed)
    instances = task.sample(count, seed)
    truth = task.render(instances)
    orders = np.stack([rng.permutation(truth.shape[1]) for _ in instances])
    videos = {
        "truth": truth,
        "frozen": np.repeat(truth[:, :1], truth.shape[1], axis=1),
        "noise": rng.integers(0, 256, truth.shape, dtype=np.uint8),
        "shuffled": truth[np.arange(count)[:, None], orders],
    }
    scored = [(name, "", task.score(video, instances)) for name, video in videos.items()]
    for kind in task.kinds:
        originals, others = zip(*task.pairs(count, seed, kind), strict=True)
        scored.append(("counterfactual", kind, task.score(task.render(others), originals)))
    rows = [(name, kind, s.total.mean(), s.strict.mean(), count) for name, kind, s in scored]
    return pd.DataFrame(rows, columns=["video", "kind", "total", "strict", "n"])
