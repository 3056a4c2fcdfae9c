"""How strong the implicit regularization of an optimizer is, what would replace it, and a monitor of it."""

from implicit_reg.strength.equivalence import alpha_for, explicit_strength_for, step_for
from implicit_reg.strength.meter import OneNormStrength, Strength, implicit_strength
from implicit_reg.strength.monitor import Monitor, Reading, monitor
from implicit_reg.strength.sampling import FullBatch, Shuffled, WithReplacement
from implicit_reg.strength.settings import (
    Adam,
    Alternating,
    Backstitch,
    GradientDescent,
    GradientPenalty,
    HeavyBall,
    Nesterov,
)

__all__ = [
    "Adam",
    "Alternating",
    "Backstitch",
    "FullBatch",
    "GradientDescent",
    "GradientPenalty",
    "HeavyBall",
    "Monitor",
    "Nesterov",
    "OneNormStrength",
    "Reading",
    "Shuffled",
    "Strength",
    "WithReplacement",
    "alpha_for",
    "explicit_strength_for",
    "implicit_strength",
    "monitor",
    "step_for",
]
