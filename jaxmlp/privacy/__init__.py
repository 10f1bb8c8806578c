"""Differentially private training: clipped and noised gradients, Poisson batches, the accountant.

A step of DP-SGD takes every example into its batch independently with probability q, and moves
along

    (Σ_n g_n min(1, C/‖g_n‖) + σC·ξ) / (q N)        ξ ~ N(0, 1) in every coordinate

with g_n = ∂(w_n E_n)/∂θ, the clip norm C and the noise multiplier σ. Taking one example away
changes the sum by C at most, so what σ, q and the number of steps come to is known: (ε, δ), for two
sets of examples of which one has an example more (add or remove one). The clipped sum is
`(c ∘ Δ)ᵀ A` of one backward pass.

Three things void the guarantee without a word: dividing by the number of examples that the batch
happens to have; batches that are shuffled and cut and not drawn as here; and a key that somebody
knows, who can subtract the noise. What no DP-SGD in floating point gives is a proof down to the
last bit: sums and norms are rounded (by some 1e-6 of C in float32), and so is the noise. Neither
JAX's generator, which draws it, nor NumPy's, which draws the batches, is a cryptographic one.

References:
    Abadi et al., Deep Learning with Differential Privacy, 2016, algorithm 1.
    Mironov, On Significance of the Least Significant Bits for Differential Privacy, 2012.
"""

from jaxmlp.privacy.accounting import epsilon, noise_multiplier_for
from jaxmlp.privacy.gradient import gaussian_noise, private_gradient
from jaxmlp.privacy.sampling import padded_size, poisson_batches

__all__ = [
    "epsilon",
    "gaussian_noise",
    "noise_multiplier_for",
    "padded_size",
    "poisson_batches",
    "private_gradient",
]
