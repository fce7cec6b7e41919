"""Whether a model does what its family's file says."""

from dit_lens.checks.report import CHECKED_WITH, CheckReport, Result

__all__ = ["CHECKED_WITH", "CheckReport", "Result"]
