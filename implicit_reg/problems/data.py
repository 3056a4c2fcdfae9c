"""Real data that comes with scikit-learn: split, scaled and, where wanted, with noisy labels. NumPy throughout."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from implicit_reg import _checks
from implicit_reg._types import Integer, Scalar


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Features and targets in three parts, with what is needed to read them.

    Args:
      name: the word on the command line.
      task: "classification" (integer targets) or "regression" (floating targets, standardized).
      x_train, x_validation, x_test: features, (examples, features).
      y_train, y_validation, y_test: targets, (examples,); int32 labels or floats.
      num_classes: 0 for regression.
      feature_names, class_names: words for the columns and the labels.
      image_shape: (height, width, channels) where a row is an image, else `None`.
      target_mean, target_scale: a prediction p is `p * target_scale + target_mean` in the data's own units.
      note: what a reader of the numbers must know (noisy labels), or `""`.

    Example:
      >>> wine = load_dataset("wine")
      >>> wine.x_train.shape, wine.num_classes, wine.task
      ((106, 13), 3, 'classification')
    """

    name: str
    task: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_validation: np.ndarray
    y_validation: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    num_classes: int
    feature_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    image_shape: tuple[int, int, int] | None = None
    target_mean: float = 0.0
    target_scale: float = 1.0
    note: str = ""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise _checks.unknown_name("Dataset", "task", self.task, TASKS)
        for part in ("train", "validation", "test"):
            x, y = np.asarray(getattr(self, f"x_{part}")), np.asarray(getattr(self, f"y_{part}"))
            if x.ndim != 2 or y.shape != x.shape[:1] or not len(x):
                raise ValueError(
                    f"Dataset: `x_{part}` must have shape (examples, features) and `y_{part}` (examples,), not empty; "
                    f"got {x.shape} and {y.shape}"
                )
            if x.shape[1] != np.asarray(self.x_train).shape[1]:
                raise ValueError(f"Dataset: `x_{part}` has {x.shape[1]} features, `x_train` another number")
            if not np.isfinite(x).all() or not np.isfinite(y).all():
                raise ValueError(f"Dataset: `x_{part}` and `y_{part}` must be finite; they hold nan or inf")
            if self.task == "classification" and not (
                np.issubdtype(y.dtype, np.integer)
                and self.num_classes >= 2
                and 0 <= y.min() <= y.max() < self.num_classes
            ):
                raise ValueError(
                    f"Dataset: `y_{part}` must hold integer labels in [0, num_classes), and `num_classes` be 2 or "
                    f"more; got dtype {y.dtype}, {y.min()} to {y.max()}, num_classes={self.num_classes}"
                )

    @property
    def num_features(self) -> int:
        """The number of columns of `x_train`."""
        return self.x_train.shape[1]

    @property
    def num_outputs(self) -> int:
        """What a model must put out per example: one logit per class, or one number."""
        return self.num_classes if self.task == "classification" else 1


TASKS = ("classification", "regression")
DATASETS = ("digits", "breast-cancer", "wine", "diabetes")
SCALINGS = ("standard", "min-max", "mean-normalization", "unit-length", "robust", "max-abs", "none")


def feature_scaler(scaling: str) -> Any:
    """The scikit-learn transformer for a name of `SCALINGS`, not fitted.

    standard: (x - mean)/std; min-max: (x - min)/(max - min); mean-normalization: (x - mean)/(max - min); unit-length:
    each *example* divided by its Euclidean norm; robust: (x - median)/interquartile range; max-abs: x/max|x|. Constant
    features stay finite.

    Args:
      scaling: one of `SCALINGS`.

    Returns:
      A transformer with `fit` and `transform`.

    Raises:
      ValueError: for another name.

    Example:
      >>> feature_scaler("mean-normalization").fit_transform([[0.0], [1.0], [5.0]]).ravel()
      array([-0.4, -0.2,  0.6])
    """
    if scaling not in SCALINGS:
        raise _checks.unknown_name("feature_scaler", "scaling", scaling, SCALINGS)
    from sklearn import pipeline, preprocessing

    if scaling == "mean-normalization":
        # (x - mean)/(max - min) has no class of its own: it is min-max followed by centering.
        return pipeline.make_pipeline(preprocessing.MinMaxScaler(), preprocessing.StandardScaler(with_std=False))
    return {
        "standard": preprocessing.StandardScaler,
        "min-max": preprocessing.MinMaxScaler,
        "unit-length": preprocessing.Normalizer,
        "robust": preprocessing.RobustScaler,
        "max-abs": preprocessing.MaxAbsScaler,
        "none": preprocessing.FunctionTransformer,
    }[scaling]()


def flip_labels(labels: np.ndarray, fraction: Scalar, num_classes: Integer, seed: Integer) -> np.ndarray:
    """Gives `round(fraction n)` of the labels, chosen at random, another class each, uniformly.

    Args:
      labels: integers in [0, num_classes), shape (n,).
      fraction: in [0, 1].
      num_classes: 2 or more.
      seed: of the choice.

    Returns:
      A new array with the dtype of `labels`.

    Raises:
      ValueError: where `fraction` lies outside [0, 1].

    Example:
      >>> flipped = flip_labels(np.zeros(10, np.int32), 0.3, 2, seed=0)
      >>> int(flipped.sum())
      3
    """
    _checks.check_number("flip_labels", "fraction", fraction, low=0.0)
    if fraction > 1:
        raise ValueError(f"flip_labels: `fraction` must be at most 1, got {fraction}")
    _checks.check_integer("flip_labels", "num_classes", num_classes, low=2)
    _checks.check_seed("flip_labels", "seed", seed)
    rng = np.random.default_rng(int(seed))
    chosen = rng.permutation(len(labels))[: round(float(fraction) * len(labels))]
    flipped = labels.copy()
    shift = rng.integers(1, num_classes, size=len(chosen))
    flipped[chosen] = (labels[chosen] + shift) % num_classes
    return flipped


def load_dataset(
    name: str,
    *,
    seed: Integer = 0,
    scaling: str = "standard",
    label_noise: Scalar = 0.0,
    validation: Scalar = 0.2,
    test: Scalar = 0.2,
    dtype: Any = np.float32,
) -> Dataset:
    """One of scikit-learn's bundled sets, shuffled and split (stratified by class), with scaled features.

    The scaler is fitted on the training split alone. The target of `diabetes` is standardized with the training
    split's mean and deviation, which are kept, so that errors can be given in its own units.

    Args:
      name: one of `DATASETS`.
      seed: of the split and of the noise, in [0, 2**32).
      scaling: one of `SCALINGS`; see `feature_scaler`.
      label_noise: fraction of the training and validation labels that get another class; test labels stay clean.
      validation, test: the fractions of those splits; what remains trains.
      dtype: of the features, a NumPy floating dtype.

    Returns:
      A `Dataset`.

    Raises:
      ValueError: for an unknown name, fractions that leave no training data, or noise on a regression.

    Example:
      >>> digits = load_dataset("digits", seed=1)
      >>> digits.x_train.shape, digits.y_test.shape, digits.image_shape
      ((1077, 64), (360,), (8, 8, 1))
    """
    if name not in DATASETS:
        raise _checks.unknown_name("load_dataset", "data set", name, DATASETS)
    _checks.check_seed("load_dataset", "seed", seed)
    for argument, value in (("label_noise", label_noise), ("validation", validation), ("test", test)):
        _checks.check_number("load_dataset", argument, value, low=0.0, exclusive=argument != "label_noise")
    if label_noise > 1:
        raise ValueError(f"load_dataset: `label_noise` must be at most 1, got {label_noise}")
    if validation + test >= 1:
        raise ValueError(f"load_dataset: `validation` + `test` must be below 1, got {validation} + {test}")
    scaler = feature_scaler(scaling)
    from sklearn import datasets, model_selection

    bunch = getattr(datasets, f"load_{name.replace('-', '_')}")()
    classification = name != "diabetes"
    if label_noise > 0 and not classification:
        raise ValueError(f"load_dataset: `label_noise` flips classes and {name} has none; leave it at 0")
    x, y = np.asarray(bunch.data, np.float64), np.asarray(bunch.target)

    def split(x, y, size):
        return model_selection.train_test_split(
            x, y, test_size=size, random_state=int(seed), stratify=y if classification else None
        )

    x_rest, x_test, y_rest, y_test = split(x, y, float(test))
    x_train, x_validation, y_train, y_validation = split(x_rest, y_rest, float(validation) / (1.0 - float(test)))
    scaler.fit(x_train)
    xs = [np.asarray(scaler.transform(part), dtype) for part in (x_train, x_validation, x_test)]
    mean, scale, note = 0.0, 1.0, ""
    if classification:
        ys = [part.astype(np.int32) for part in (y_train, y_validation, y_test)]
        if label_noise > 0:
            for k in (0, 1):
                # Two streams from one seed: the noise of the validation labels must not repeat that of the others.
                stream = int(np.random.SeedSequence([int(seed), k]).generate_state(1)[0])
                ys[k] = flip_labels(ys[k], label_noise, len(bunch.target_names), stream)
            note = f"{float(label_noise):.3g} of the training and validation labels are flipped; test labels are clean"
    else:
        mean, scale = float(np.mean(y_train)), float(np.std(y_train))
        ys = [np.asarray((part - mean) / scale, dtype) for part in (y_train, y_validation, y_test)]
    return Dataset(
        name,
        TASKS[0] if classification else TASKS[1],
        *(array for pair in zip(xs, ys, strict=True) for array in pair),
        num_classes=len(bunch.target_names) if classification else 0,
        feature_names=tuple(str(word) for word in bunch.feature_names),
        class_names=tuple(str(word) for word in bunch.target_names) if classification else (),
        image_shape=(8, 8, 1) if name == "digits" else None,
        target_mean=mean,
        target_scale=scale,
        note=note,
    )
