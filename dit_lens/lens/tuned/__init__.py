"""The tuned lens: an affine translator for every layer and band of noise levels, trained to what the last layer holds.

After Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens" (arXiv 2303.08112),
carried over from the layers of a language model to those of a diffusion transformer, whose residual stream also depends
on the noise level.
"""

from dit_lens.lens.tuned.bands import Band
from dit_lens.lens.tuned.compare import LensComparison, compare_lenses
from dit_lens.lens.tuned.fit import fit_tuned_lens, train_tuned_lens
from dit_lens.lens.tuned.tuned_lens import TunedLens

__all__ = ["Band", "LensComparison", "TunedLens", "compare_lenses", "fit_tuned_lens", "train_tuned_lens"]
