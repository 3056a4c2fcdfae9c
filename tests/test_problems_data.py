"""Real data: the splits, the scalings re-typed in NumPy, and label noise."""

import numpy as np
import pytest
from tolerances import ROUND_OFF, assert_close

from implicit_reg import problems
from implicit_reg.problems.data import DATASETS, SCALINGS, Dataset


def raw(name, part, seed=3):
    return np.asarray(getattr(problems.load_dataset(name, seed=seed, scaling="none", dtype=np.float64), f"x_{part}"))


@pytest.mark.parametrize("name", DATASETS)
def test_splits_partition_the_data(name):
    from sklearn import datasets

    data = problems.load_dataset(name, seed=3, scaling="none", dtype=np.float64)
    x, y = getattr(datasets, f"load_{name.replace('-', '_')}")(return_X_y=True)
    rows = np.concatenate([data.x_train, data.x_validation, data.x_test])
    targets = np.concatenate([data.y_train, data.y_validation, data.y_test])
    targets = targets.astype(np.float64) * data.target_scale + data.target_mean
    together, whole = (np.column_stack(pair) for pair in ((rows, targets), (x, y)))
    order = [np.lexsort(np.round(table, 6).T) for table in (together, whole)]
    assert_close(together[order[0]], whole[order[1]], ROUND_OFF)
    n = len(x)
    assert abs(len(data.x_test) - 0.2 * n) <= 1
    assert abs(len(data.x_validation) - 0.2 * n) <= 2
    if data.task == "classification":
        share = np.bincount(y) / n
        for part in (data.y_train, data.y_validation, data.y_test):
            assert np.abs(np.bincount(part, minlength=len(share)) - share * len(part)).max() <= 1.5
            assert part.dtype == np.int32
        assert data.num_classes == len(data.class_names) == data.num_outputs
    else:
        assert data.num_outputs == 1
        assert_close(np.array([data.y_train.mean(), data.y_train.std()]), np.array([0.0, 1.0]), ROUND_OFF)
    assert len(data.feature_names) == data.num_features


def test_the_seed_moves_the_split():
    first, second, again = (problems.load_dataset("wine", seed=seed) for seed in (0, 1, 0))
    assert not np.array_equal(first.x_train, second.x_train)
    assert np.array_equal(first.x_train, again.x_train)


FORMULAS = {
    "standard": lambda x, t: (x - t.mean(0)) / t.std(0),
    "min-max": lambda x, t: (x - t.min(0)) / (t.max(0) - t.min(0)),
    "mean-normalization": lambda x, t: (x - t.mean(0)) / (t.max(0) - t.min(0)),
    "unit-length": lambda x, t: x / np.sqrt((x**2).sum(1, keepdims=True)),
    "robust": lambda x, t: (x - np.median(t, 0)) / (np.quantile(t, 0.75, 0) - np.quantile(t, 0.25, 0)),
    "max-abs": lambda x, t: x / np.abs(t).max(0),
    "none": lambda x, t: x,
}


@pytest.mark.parametrize("scaling", SCALINGS)
def test_scaling_is_the_formula_fitted_on_training_data_alone(scaling):
    data = problems.load_dataset("wine", seed=3, scaling=scaling, dtype=np.float64)
    train = raw("wine", "train")
    for part in ("train", "validation", "test"):
        assert_close(getattr(data, f"x_{part}"), FORMULAS[scaling](raw("wine", part), train), ROUND_OFF)


def test_constant_features_stay_finite():
    for scaling in SCALINGS:  # digits hold pixels that are always 0
        assert np.isfinite(problems.load_dataset("digits", scaling=scaling).x_test).all()


def test_label_noise_flips_training_and_validation_alone():
    clean = problems.load_dataset("digits", seed=5)
    noisy = problems.load_dataset("digits", seed=5, label_noise=0.25)
    for part in ("train", "validation"):
        a, b = getattr(clean, f"y_{part}"), getattr(noisy, f"y_{part}")
        assert np.sum(a != b) == round(0.25 * len(a))
        assert len(np.unique((b - a)[a != b] % 10)) == 9  # every other class occurs
    assert np.array_equal(clean.y_test, noisy.y_test)
    assert np.array_equal(clean.x_train, noisy.x_train)
    assert clean.note == ""
    assert "test labels are clean" in noisy.note


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"name": "digts"}, ValueError, r"unknown data set 'digts'\. Did you mean 'digits'\? Known: digits, breast-"),
        ({"name": "wine", "scaling": "standart"}, ValueError, r"Did you mean 'standard'"),
        ({"name": "wine", "seed": -1}, ValueError, "`seed`"),
        ({"name": "wine", "seed": 1.0}, TypeError, "`seed`"),
        ({"name": "wine", "label_noise": 1.5}, ValueError, "`label_noise` must be at most 1"),
        ({"name": "wine", "label_noise": float("nan")}, ValueError, "`label_noise`"),
        ({"name": "diabetes", "label_noise": 0.1}, ValueError, "flips classes and diabetes has none"),
        ({"name": "wine", "validation": 0.6, "test": 0.5}, ValueError, r"`validation` \+ `test` must be below 1"),
        ({"name": "wine", "test": 0}, ValueError, "`test` must be"),
    ],
)
def test_bad_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        problems.load_dataset(**arguments)


def test_a_users_data_is_checked():
    x, y = np.ones((4, 2), np.float32), np.array([0, 1, 0, 1])
    good = {"name": "own", "task": "classification", "num_classes": 2}
    good |= {f"{k}_{part}": v for k, v in (("x", x), ("y", y)) for part in ("train", "validation", "test")}
    Dataset(**good)
    for change, match in [
        ({"task": "clasification"}, "Did you mean 'classification'"),
        ({"y_test": y[:3]}, "`x_test` must have shape"),
        ({"x_test": x[:0], "y_test": y[:0]}, "not empty"),
        ({"x_test": np.ones((4, 3))}, "`x_test` has 3 features"),
        ({"x_validation": x * np.nan}, "must be finite"),
        ({"y_train": y + 1}, "integer labels"),
        ({"y_train": y.astype(float)}, "integer labels"),
    ]:
        with pytest.raises(ValueError, match=match):
            Dataset(**(good | change))
