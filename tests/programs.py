"""What a traced program is made of."""

from jax.extend.core import jaxprs_in_params


def loops_around(jaxpr, marker, depth=0):
    """In how many nested loops each equation stands whose primitive names the marker."""
    found = []
    for equation in jaxpr.eqns:
        if marker in equation.primitive.name:
            found.append(depth)
        inner = depth + (equation.primitive.name in ("while", "scan"))
        for sub in jaxprs_in_params(equation.params):
            found += loops_around(sub, marker, inner)
    return found
