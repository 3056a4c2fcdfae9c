"""What the tests of `implicit-reg sweep` sweep: a small function that takes as long, and fails as, a test wants."""

import errno
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np

if "SWEPT_END_AT" in os.environ:  # "kill 3": die between the writing of the third chunk and its renaming
    rename, counted = os.replace, []
    how, at = os.environ["SWEPT_END_AT"].split()

    def replace(source, target):
        if "chunk" in os.path.basename(target):
            counted.append(target)
            if len(counted) == int(at):
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, target)

    os.replace = replace


def _wait(x):
    time.sleep(float(os.environ.get("SWEPT_SECONDS", "0")))
    return np.asarray(x)


def descent(key, h, power=2):
    """Losses of a few steps on x^4; with h = 9 it diverges."""
    x = 1 + jax.random.key_data(key)[1].astype(jnp.float32) / 2.0**32  # compiles sooner than a normal draw

    def step(x, _):
        return x - h * x ** (power + 1), jnp.sum(x**2)

    x, losses = jax.lax.scan(step, x, length=12)
    losses = jax.pure_callback(_wait, losses, losses, vmap_method="broadcast_all")
    return {"loss": losses[-1], "curve": losses}


def wrong(key, h):
    raise ZeroDivisionError("no such luck")


def lonely(key):
    return jnp.float32(1.0)


def enormous(key, h):
    return jnp.sort(h * jnp.arange(2.0**21)[:, None] * jnp.ones(2**22), axis=0)[0, 0]
