"""Implicit regularization in JAX: use it (gradient transformations), and check it (modified equations)."""
