"""The tuned lens: an affine translator for every layer and band of noise levels, trained to what the last layer holds.

After Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens" (arXiv 2303.08112),
carried over from the layers of a language model to those of a diffusion transformer, whose residual stream also depends
on the noise level.
"""
