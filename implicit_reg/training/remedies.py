"""Tells a too small model from an optimization that is slow, by trying both remedies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from implicit_reg import _checks
from implicit_reg._types import Integer
from implicit_reg.training import evidence as ev
from implicit_reg.training.program import TrainState
from implicit_reg.training.runs import History, Run, fit

HELPS = 0.2  # a change helped where it took away this part of the training loss above the label noise


@dataclasses.dataclass(frozen=True)
class Further:
    """What a longer run and a larger model made of the training loss."""

    epochs: int
    before: float
    longer: float | None
    larger: float | None
    longer_helped: bool
    larger_helped: bool
    sentence: str


def diagnose_further(
    run: Run,
    state: TrainState,
    history: History,
    *,
    epochs: Integer | None = None,
    on_epoch: Callable[[], None] | None = None,
) -> Further:
    """Tells a too small model from a slow optimization, by trying both: the run goes on, and a wider model is trained.

    The longer run has half as many epochs more (a schedule starts anew for the new length); the larger model has four
    times the widths and as many epochs as the run had. Each is compared at the end of its own training.

    Args:
      run, state, history: of a run that did not diverge.
      epochs: to go on for; None is half of those done.
      on_epoch: called after every epoch of both.

    Returns:
      A `Further`; a loss that is not finite is None.

    Raises:
      TypeError, ValueError: `epochs` below 1, no finished epoch, or a run that diverged.

    Example:
      >>> from implicit_reg.training import Settings
      >>> run = Run(Settings(data="digits", widths=(1,), epochs=10, batch_size=100))
      >>> diagnose_further(run, *fit(run)).larger_helped
      True
    """
    if epochs is not None:
        _checks.check_integer("diagnose_further", "epochs", epochs)
    train = ev.curve(history, "train_loss")
    if not len(train) or not bool(state.finite):
        raise ValueError("diagnose_further: needs a run of at least one epoch that did not diverge")
    more = max(1, len(history) // 2) if epochs is None else int(epochs)
    tick = None if on_epoch is None else (lambda state, history: on_epoch())
    settings = run.settings
    goes_on = Run(dataclasses.replace(settings, epochs=int(state.epoch) + more), given=run.data)
    longer = _end(fit(goes_on, state=state, history=history, on_epoch=tick)[1])
    widths = settings.widths or ((64,) if settings.model == "mlp" else (16, 32))
    wide = dataclasses.replace(settings, widths=tuple(4 * w for w in widths), epochs=int(state.epoch))
    larger = _end(fit(Run(wide, given=run.data), on_epoch=tick)[1])
    before, floor = float(np.mean(train[-3:])), ev.unavoidable_loss(run)

    def helped(loss: float | None) -> bool:
        return loss is not None and before - loss > HELPS * max(before - floor, 0.0)

    words = {
        (True, True): "both help: start with the longer run, the cheaper one",
        (True, False): "it is optimization: a longer run helps, a larger model does not",
        (False, True): "the model is too small: a larger one helps, a longer run does not",
        (False, False): "neither helps: another learning rate or method, or data that cannot be fitted",
    }
    answer = (helped(longer), helped(larger))
    losses = [("not finite" if x is None else f"{x:.4g}") for x in (longer, larger)]
    sentence = (
        f"Training loss {before:.4g}; {losses[0]} after {more} epochs more, {losses[1]} with four times the width: "
        f"{words[answer]}."
    )
    return Further(more, before, longer, larger, *answer, sentence)


def _end(history: History) -> float | None:
    values = ev.curve(history, "train_loss")
    return float(np.mean(values[-3:])) if len(values) == len(history) else None
