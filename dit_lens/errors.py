"""Every error that dit_lens raises on purpose.

::

    DitLensError
    ├── SiteError              a site, step, layer, branch, component or token that the model does not have
    │   └── DidNotFire         an intervention whose sites were never visited
    ├── InputError             inputs, seeds, sizes or settings that a run cannot take
    ├── DonorError             a donor that does not fit the place it is patched into
    ├── NotFinite              NaN or infinity in an activation
    ├── PipelineBusy           a run on a pipeline that is in a run already
    ├── UnsupportedModel       not a video diffusion transformer that dit_lens knows
    ├── TaskError              a task that cannot be made or scored as asked
    ├── CheckFailed            a model that does not do what its family's file says
    ├── EvidenceError          an analysis that cannot be carried out on what it was given
    ├── MadeForAnother         a trained probe or lens, or a stored activation, of another model, site or width
    └── StoreError             files of activations that are damaged or manipulated, or any that cannot be written
"""

from __future__ import annotations


class DitLensError(Exception):
    """Base of all errors of this package."""


class SiteError(DitLensError, ValueError):
    """A site that does not exist in this model or run; the message names the valid values."""


class DidNotFire(SiteError):
    """An intervention of which no site was visited; the message names the sites that were."""


class InputError(DitLensError, ValueError):
    """Inputs, seeds, sizes or settings that a run cannot take."""


class DonorError(DitLensError, ValueError):
    """A donor whose rows, sites or shapes do not fit where it is patched in."""


class NotFinite(DitLensError, ArithmeticError):
    """NaN or infinity in an activation; the message names the first site where it was seen."""


class PipelineBusy(DitLensError, RuntimeError):
    """A run or replay on a pipeline that is in one already, be it inside of it or in another thread."""


class UnsupportedModel(DitLensError, TypeError):
    """A model that is no video diffusion transformer of a known family."""


class TaskError(DitLensError, ValueError):
    """A task that cannot be made or scored as asked."""


class CheckFailed(DitLensError, AssertionError):
    """A model that does not do what its family's file says; the message names the family, the site and the numbers."""


class EvidenceError(DitLensError, ValueError):
    """An analysis that cannot be carried out on the data it was given."""


class MadeForAnother(DitLensError, ValueError):
    """A trained probe or lens, or stored activations, of another model, site or width; the message names both."""


class StoreError(DitLensError, OSError):
    """Files of activations that are damaged or manipulated, or any that cannot be written; names the file and why."""
