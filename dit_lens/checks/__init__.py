"""Whether a model does what its family's file says."""

from dit_lens.checks.report import CheckReport, Result, versions

__all__ = ["CheckReport", "Result", "versions"]
