"""Records as the commands write them, made up: errors `C h^p` with a little noise, and real two-parameter runs."""

from __future__ import annotations

import numpy as np

METHODS = {
    "gd": ("Gradient descent", "L + (h/4) ||grad L||^2", "barrett2021", 0.25),
    "gradient-penalty": ("Explicit gradient penalty", "L + (h/4 + strength) ||grad L||^2", "barrett2021", 0.75),
    "backstitch": ("Backstitch", "L + (h/4)(1 + 2 alpha + 2 alpha^2) ||grad L||^2", "wang2017", 0.445),
    "alternating": (
        "Alternating descent and ascent",
        "L + (e1^2 + e2^2)/(4 (e1 - e2)) ||grad L||^2",
        "ishida2020",
        0.6,
    ),
    "sam": ("Sharpness-aware minimization", "L + rho ||grad L|| + (h/4) ||grad L||^2", "foret2021", 0.5),
}


def _errors(h, order, constant, rng):
    error = constant * h**order * np.exp(0.4 * order * h / h[0]) * np.exp(rng.normal(0, 0.01, len(h)))
    slopes = np.diff(np.log(error)) / np.diff(np.log(h))
    return [float(x) for x in error], [float(x) for x in slopes]


def _loss(name, num_params, h, seed, scale):
    rng = np.random.default_rng(seed)
    truncations = []
    for terms in (1, 2, 3):
        row = {"terms": terms}
        for kind, extra in (("fixed_time", 0), ("one_step", 1)):
            order = terms + extra
            error, slopes = _errors(h, order, scale * 2.0**-terms * (0.3 if extra else 1.0), rng)
            row[kind] = {
                "expected": order,
                "error": error,
                "slopes": slopes,
                "measured": slopes[-1],
                "mutant": None if terms == 1 else float(order - 1 + rng.uniform(0.05, 0.4)),
                "verdict": "holds",
                "reason": None,
            }
        truncations.append(row)
    return {
        "name": name,
        "num_params": num_params,
        "h": [float(x) for x in h],
        "time": 1.0,
        "h_lambda": [float(x) for x in 2.6 * h],
        "truncations": truncations,
        "update": {"error": 1.4e-16, "tolerance": 1e-12, "verdict": "holds"},
        "leading": {"error": 3.1e-13, "tolerance": 1e-9, "verdict": "holds"},
    }


def _gradient(x):
    a, b = x
    r = 0.6 - a * b
    return np.array([-r * b, -r * a])


def _hessian(x):
    a, b = x
    r = 0.6 - a * b
    return np.array([[b * b, a * b - r], [a * b - r, a * a]])


def _flow(field, x, time, n):
    """Runge-Kutta of fourth order, `n` records with ten steps between."""
    points, dt = [x], time / (10 * n)
    for _ in range(n):
        for _ in range(10):
            k1 = field(x)
            k2 = field(x + dt / 2 * k1)
            k3 = field(x + dt / 2 * k2)
            k4 = field(x + dt * k3)
            x = x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        points.append(x)
    return np.array(points)


def _run(name, h, n, penalty):
    start = np.array([1.5, 1.1])
    # The iterates of all methods are made by one formula: descent with the method's whole penalty.
    extra = penalty - 0.25
    iterates = [start]
    for _ in range(n):
        x = iterates[-1]
        iterates.append(x - h * _gradient(x) - 2 * extra * h * h * _hessian(x) @ _gradient(x))
    modified = _flow(lambda x: -_gradient(x) - 2 * penalty * h * _hessian(x) @ _gradient(x), start, n * h, 4 * n)
    return {
        "name": name,
        "h": h,
        "iterates": np.array(iterates).tolist(),
        "gradient_flow": _flow(lambda x: -_gradient(x), start, n * h, 4 * n).tolist(),
        "modified_flow": modified.tolist(),
    }


def verify_record():
    """A run of `verify` where everything holds."""
    h = np.array([0.16, 0.08, 0.04, 0.02, 0.01])
    checks = []
    for i, (name, (title, formula, source, _)) in enumerate(METHODS.items()):
        losses = [_loss("digits", 810, h / 2, 10 * i, 0.8), _loss("factorization", 2, h, 10 * i + 1, 2.5)]
        measured = [losses[0]["truncations"][k]["fixed_time"]["measured"] for k in range(3)]
        details = {
            "title": title,
            "claim": f"{title} with step h follows the flow of a modified loss to second order.",
            "formula": formula,
            "source": source,
            "losses": losses,
        }
        checks.append(
            {"name": name, "verdict": "holds", "expected": [1, 2, 3], "measured": measured, "details": details}
        )
    grid = {"a": np.linspace(0.2, 2.4, 60), "b": np.linspace(0.1, 1.9, 50)}
    loss = 0.5 * (0.6 - np.outer(grid["b"], grid["a"])) ** 2
    return {
        "format": "implicit_reg.verify",
        "version": 1,
        "environment": {"python": "3.11.7", "jax": "0.10.2", "platform": "cpu", "devices": 1, "dtype": "float64"},
        "config": {"command": "implicit-reg verify", "seed": 0, "only": None, "terms": 3},
        "wall_seconds": 93.4,
        "verdict": "holds",
        "checks": checks,
        "trajectories": {
            "loss": "factorization",
            "grid": {"a": grid["a"].tolist(), "b": grid["b"].tolist(), "loss": loss.tolist()},
            "runs": [_run(name, 0.08, 60, row[3]) for name, row in METHODS.items()],
        },
    }


def troubled_record():
    """The same with one prediction that fails, one that could not be measured, and one row without an order."""
    record = verify_record()
    record["verdict"] = "fails"
    backstitch, sam = record["checks"][2], record["checks"][4]
    cell = backstitch["details"]["losses"][1]["truncations"][2]["fixed_time"]
    cell["error"] = [e * 0.2 * (i + 1) ** 1.3 for i, e in enumerate(cell["error"])]
    cell.update(measured=1.46, verdict="fails", reason="the order on the finest pair is 1.46, expected 3 within 0.1")
    backstitch.update(verdict="fails", measured=[1.0, 2.0, 1.46])
    cell = sam["details"]["losses"][0]["truncations"][2]["one_step"]
    cell["error"][3:] = [None, None]
    cell.update(measured=None, verdict="could not measure", reason="the error is below the floor of the solver")
    cell["slopes"][2:] = [None, None]
    sam["details"]["losses"][1]["truncations"][2]["fixed_time"].update(
        measured=None, error=[None] * 5, slopes=[None] * 4, verdict="could not measure", reason="the run diverged"
    )
    sam.update(verdict="could not measure", measured=[1.0, 2.0, None])
    criterion = {
        "name": "flooding-level",
        "verdict": "holds",
        "expected": [],
        "measured": [],
        "criterion": "the mean loss stays within 1 % of the level",
        "details": {
            "title": "Flooding",
            "claim": "Flooding stays at its level.",
            "formula": None,
            "source": "ishida2020",
        },
    }
    record["checks"].append(criterion)
    return record


def history():
    """What `train` records per epoch."""
    rng = np.random.default_rng(0)
    epoch = np.arange(1, 61)
    train = 2.2 * np.exp(-epoch / 9) + 0.05
    validation = 2.2 * np.exp(-epoch / 9) + 0.16 + 0.0022 * np.maximum(epoch - 22, 0) + rng.normal(0, 0.006, 60)
    accuracy = 0.965 - 0.85 * np.exp(-epoch / 6) + rng.normal(0, 0.002, 60)
    return {
        "epoch": epoch.tolist(),
        "train_loss": train.tolist(),
        "validation_loss": validation.tolist(),
        "validation_accuracy": accuracy.tolist(),
    }


def comparison_record():
    """What `compare` records: five methods, eight seeds, paired differences to the first."""
    rng = np.random.default_rng(1)
    seeds = rng.normal(0.142, 0.012, 8)
    shifts = {"gd": 0.0, "gradient-penalty": -0.014, "backstitch": -0.009, "flooding": -0.022, "sam": 0.002}
    methods = []
    for name, shift in shifts.items():
        values = seeds + shift + (rng.normal(0, 0.006, 8) if shift else 0)
        difference = values - seeds
        mean, error = float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(8))
        methods.append(
            {
                "name": name,
                "values": values.tolist(),
                "mean": float(values.mean()),
                "standard_error": float(values.std(ddof=1) / np.sqrt(8)),
                "difference": None
                if name == "gd"
                else {
                    "mean": mean,
                    "standard_error": error,
                    "low": mean - 2.36 * error,
                    "high": mean + 2.36 * error,
                },
            }
        )
    return {"metric": "test cross-entropy", "baseline": "gd", "methods": methods}
