"""Gradient noise that decays: Optax's, by its standard deviation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from implicit_reg import _checks
from implicit_reg._types import Integer, Params, Scalar


def add_decaying_noise(c: Scalar, r: Scalar, key: jax.Array | Integer) -> optax.GradientTransformationExtraArgs:
    """Adds independent Gaussian noise of standard deviation `c / (1 + t)^r` to every entry, at step t = 0, 1, ...

    This is `optax.add_noise(eta=c**2, gamma=2*r, key=key)`, whose arguments are the variance and its exponent, with
    the arguments checked.

    Args:
      c: the standard deviation at the first step, at least 0.
      r: the decay exponent, at least 0; 0 is constant noise. The original work uses 0.275 (a variance like t^-0.55).
      key: a PRNG key, or a seed in [0, 2**32). Each member of a vmapped ensemble needs its own.

    Returns:
      The transformation of Optax; its state holds the key and the count.

    Raises:
      TypeError, ValueError: where a number is not finite, real and at least 0, or the key is neither a key nor a seed;
        in `init`, for an integer or complex leaf.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from implicit_reg.transforms import add_decaying_noise
      >>> tx = add_decaying_noise(0.1, 0.5, jax.random.key(0))
      >>> grads = jnp.zeros(10_000)
      >>> noise, state = tx.update(grads, tx.init(grads))
      >>> round(float(jnp.std(noise)), 2)
      0.1

    References:
      [neelakantan2015]
    """
    for argument, value in (("c", c), ("r", r)):
        why = "for a schedule, use optax.inject_hyperparams" if callable(value) else ""
        _checks.check_number("add_decaying_noise", argument, value, low=0.0, why=why)
    noise = optax.add_noise(eta=c**2, gamma=2 * r, key=_key(key))

    def init(params: Params) -> optax.OptState:
        _checks.check_floating("add_decaying_noise", "params", params, allow_empty=True)
        return noise.init(params)

    return optax.with_extra_args_support(optax.GradientTransformation(init, noise.update))


def _key(key: jax.Array | Integer) -> jax.Array | Integer:
    """What `optax.add_noise` takes: a typed key or a seed."""
    if not isinstance(key, jax.Array):
        _checks.check_seed("add_decaying_noise", "key", key)
        return key
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.shape == ():
            return key
    elif key.dtype == jnp.uint32 and key.shape == (2,):
        return jax.random.wrap_key_data(key)
    elif jnp.issubdtype(key.dtype, jnp.integer) and key.shape == ():
        return key
    raise TypeError(
        f"add_decaying_noise: `key` must be one PRNG key or a seed, got {key.dtype} of shape {key.shape}; for an "
        f"ensemble, jax.vmap over the keys"
    )
