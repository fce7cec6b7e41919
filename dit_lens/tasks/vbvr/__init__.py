"""VBVR-Bench: read it, run a model over it, score the results; write our own tasks in its format.

The format is that of "A Very Big Video Reasoning Suite" (arXiv 2602.20159), as these public repositories have it:

- github.com/Video-Reason/VBVR-EvalKit at 275472f (30 April 2026): folders of the benchmark and of results (README), the
  rule scorers and how they are called (``run_evaluation.py``, ``vbvr_bench/evaluators``);
- github.com/Video-Reason/VBVR-DataFactory at 2ab7ac6 and github.com/VBVR-DataFactory/template-data-pipeline at 662d33a:
  the folders that generators write, and which of their files are optional;
- github.com/VBVR-DataFactory/G-174_arrange_circles_by_circumference_data-generator at 714b164: how a generator writes
  ``prompt.txt`` and ``metadata.json``.

Videos need PyAV, the extra ``video``.
"""

from dit_lens.files.video import read_video, write_video
from dit_lens.tasks.vbvr.bench import SPLITS, Report, VbvrSample, read_bench, read_questions, validate
from dit_lens.tasks.vbvr.exported import export, score_results
from dit_lens.tasks.vbvr.official import beside_floors, official_scores
from dit_lens.tasks.vbvr.results import null_results, read_result, run_bench, write_results
from dit_lens.tasks.vbvr.task import VbvrTask

__all__ = [
    "SPLITS",
    "Report",
    "VbvrSample",
    "VbvrTask",
    "beside_floors",
    "export",
    "null_results",
    "official_scores",
    "read_bench",
    "read_questions",
    "read_result",
    "read_video",
    "run_bench",
    "score_results",
    "validate",
    "write_results",
    "write_video",
]
