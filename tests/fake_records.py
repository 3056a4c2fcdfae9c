"""Records as the commands write them, made up: errors `C h^p` with a little noise, and real two-parameter runs."""

from __future__ import annotations

import copy

import numpy as np

H = np.array([0.1, 0.05, 0.025, 0.0125, 0.00625])
LOSSES = {
    "digits-tanh": (610, -0.09, 2.4, 0.8),
    "nonquadratic": (3, 0.3, 4.1, 2.5),
}  # size, spectrum, constant

# name: (title, formula, source, expected orders, statements besides the main one)
ORDERS = {
    "gd": ("Gradient descent", "x' = -grad(L + (h/4) ||grad L||^2) + h^2 (...)", "barrett2021", (1, 2, 3, 4, 5), ()),
    "alternating": (
        "Alternating descent and ascent",
        "x' = -grad(L + (e1^2 + e2^2)/(4 (e1 - e2)) ||grad L||^2)",
        "ishida2020",
        (1, 2, 3),
        ("discrete form",),
    ),
    "backstitch": ("Backstitch", "x' = -grad(L + (h/4)(1 + 2 a + 2 a^2) ||grad L||^2)", "wang2017", (1, 2), ()),
    "flooding-level-set": ("Full-batch flooding along the level set", "x' = -(h/2) P grad ||grad L||^2", "", (2,), ()),
    "sam": (
        "Sharpness-aware minimization",
        "x' = -grad(L + rho ||grad L|| + (h/4) ||grad L||^2)",
        "foret2021",
        (1, 2, 3),
        ("rho fixed", "rho proportional to h, from the slow manifold"),
    ),
}
CRITERIA = {
    "principal-flow": ("Principal flow", "x' = sum_i log(1 - h l_i)/(h l_i) <g, v_i> v_i", "rosca2023"),
    "central-flow": ("Central flow", "x' = -P (grad L + (1/2) grad <Sigma, H>)", "cohen2025"),
}

NAMES = (
    *("gd", "alternating", "backstitch", "backstitch-shuffled", "flooding-pair", "flooding-minibatch-pair"),
    *("flooding-level-set", "sam", "sam-unnormalized", "gradient-penalty", "weight-decay", "heavy-ball", "nesterov"),
    *("ema", "adam", "adamw", "nadam", "rmsprop", "sgd-shuffled", "sgd-replacement", "principal-flow", "central-flow"),
    "two-player",
)


def _errors(h, order, constant, rng):
    error = constant * h**order * np.exp(0.4 * order * h / h[0]) * np.exp(rng.normal(0, 0.01, len(h)))
    slopes = np.diff(np.log(error)) / np.diff(np.log(h))
    return [float(x) for x in error], [float(x) for x in slopes]


def order_case(statement, loss, expected, seed, one_step=True):
    """Errors of a statement that holds."""
    rng = np.random.default_rng(seed)
    size, low, high, scale = LOSSES[loss]
    truncations = []
    for p, order in enumerate(expected):
        row = {"terms": p + 1, "one_step": None}
        for kind, extra in (("fixed_time", 0), ("one_step", 1)):
            if extra and not one_step:
                continue
            error, slopes = _errors(H, order + extra, scale * 2.0**-p * (0.3 if extra else 1.0), rng)
            row[kind] = {
                "expected": order + extra,
                "error": error,
                "slopes": slopes,
                "measured": slopes[-1],
                "mutant": float(order + extra - 1 + rng.uniform(0.05, 0.4)),
                "verdict": "holds",
                "reason": None,
            }
        truncations.append(row)
    errors = [row["fixed_time"]["error"][-1] for row in truncations]
    following = [float(x) for x in 1 + rng.normal(0, 0.02, len(expected) - 1)]
    return {
        "kind": "order",
        "statement": statement,
        "loss": loss,
        "num_params": size,
        "h": [float(x) for x in H],
        "time": 0.5,
        "floor": 1e-13,
        "verdict": "holds",
        "truncations": truncations,
        "validity": {
            "quantity": "h max|lambda|",
            "x": [float(x) for x in H * high],
            "band": "fine",
            "low": low,
            "high": high,
            "term_ratio": [float(x) for x in 0.013 * (1 + rng.uniform(0, 0.1, len(expected) - 1))],
            "next_term": following if one_step else [None] * len(following),
            "above_floor": min(errors) / 1e-13,
        },
    }


def criterion_case(statement, loss, value, bound, mutant, at_most=True, **more):
    """A number on the right side of its bound."""
    return {
        "kind": "criterion",
        "statement": statement,
        "loss": loss,
        "num_params": LOSSES[loss][0],
        "verdict": "holds",
        "wanted": f"{statement}: {'at most' if at_most else 'at least'} {bound:g} on the whole run",
        "value": value,
        "bound": bound,
        "at_most": at_most,
        "mutant": mutant,
        "reason": None,
        "numbers": {},
        "series": None,
        **more,
    }


def _principal(loss):
    x = [float(h) for h in H]
    curves = {
        "principal flow": [3e-3 * h**2 for h in x],
        "modified flow of three terms": [None, 0.02, *[0.9 * h**3 for h in x[2:]]],
        "gradient flow": [0.4 * h for h in x],
    }
    series = {"x": x, "xlabel": "step size h", "ylabel": "relative error per step", "log": True, "curves": curves}
    return [
        criterion_case("below 1 it follows the iterates", loss, 3.1e-4, 1e-2, 0.44, series=series),
        criterion_case("beyond 1 the safe branch is finite", loss, 0.0, 1e-9, 2.7, numbers={"h lambda": 1.31}),
        criterion_case("radius of convergence", loss, 0.9983, 0.98, 0.702, at_most=False),
    ]


def _central(loss):
    t = np.arange(400) * 0.05
    sharpness = 20 - 14 * np.exp(-t / 4)
    edge = np.minimum(sharpness, 18) + 0.8 * np.sin(9 * t) * (sharpness > 18)
    curves = {
        "gradient descent": edge.tolist(),
        "central flow": np.minimum(sharpness, 18).tolist(),
        "gradient flow": sharpness.tolist(),
        "2 / h": [18.0] * len(t),
    }
    series = {"x": t.tolist(), "xlabel": "t = n h", "ylabel": "sharpness", "log": False, "curves": curves}
    averages = {
        "x": t.tolist(),
        "xlabel": "t = n h",
        "ylabel": "training loss, averaged over a window of 50 steps",
        "log": True,
        "curves": {
            "iterates": (2 * np.exp(-t / 5) + 1e-3).tolist(),
            "predicted time average": (2 * np.exp(-t / 5.05) + 1e-3).tolist(),
        },
    }
    numbers = {"critical directions": 3, "measured variance": 0.0213, "predicted variance": 0.0209, "warm starts": True}
    return [
        criterion_case(
            "distance to the iterates, per parameter", loss, 0.012, 0.05, 0.31, series=series, numbers=numbers
        ),
        criterion_case("time-averaged loss", loss, 0.021, 0.1, 4.4, series=averages),
        criterion_case("oscillation variance: slope", loss, 0.98, 0.9, -0.97, at_most=False),
    ]


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


def _check(name, title, formula, source, expected, cases):
    main = next((case for case in cases if case["kind"] == "order"), None)
    measured = [row["fixed_time"]["measured"] for row in main["truncations"]] if main else []
    return {
        "name": name,
        "verdict": "holds",
        "expected": list(expected),
        "measured": measured,
        "criterion": "every order lies within 0.1 of the expected one, every number on its side of its bound",
        "wall_seconds": 5.3,
        "details": {
            "title": title,
            "claim": f"{title} with step h follows the flow of a modified loss to the orders that are stated here.",
            "formula": formula,
            "source": source,
            "time_scale": "one unit is one step",
            "validity": "h max|lambda| well below 1; the loss has as many derivatives as there are terms",
            "cases": cases,
        },
    }


PENALTIES = {"gd": 0.25, "alternating": 0.6, "backstitch": 0.445, "sam": 0.5}


def verify_record():
    """A run of `verify` where everything holds."""
    checks = []
    for i, (name, (title, formula, source, expected, more)) in enumerate(ORDERS.items()):
        cases = []
        for j, loss in enumerate(LOSSES):
            one_step = name != "flooding-level-set"
            cases.append(order_case("", loss, expected, 10 * i + j, one_step))
            cases += [order_case(words, loss, expected[:2], 10 * i + j + 5 + k) for k, words in enumerate(more)]
            if name in ("gd", "backstitch"):
                pin = criterion_case("update against its formula", loss, 1.4e-16, 1e-12, 0.1)
                asymmetry = criterion_case("asymmetry of F3", loss, 0.31, 1e-3, 2e-16, at_most=False)
                cases += [pin, asymmetry]
        checks.append(_check(name, title, formula, source, expected, cases))
    for (name, row), make in zip(CRITERIA.items(), (_principal, _central), strict=True):
        checks.append(_check(name, *row, (), [case for loss in LOSSES for case in make(loss)]))
    grid = {"a": np.linspace(0.2, 2.4, 60), "b": np.linspace(0.1, 1.9, 50)}
    loss = 0.5 * (0.6 - np.outer(grid["b"], grid["a"])) ** 2
    return {
        "format": "implicit_reg.verify",
        "version": 2,
        "preset": "quick",
        "environment": {"python": "3.11.7", "jax": "0.10.2", "platform": "cpu", "devices": 1, "dtype": "float64"},
        "config": {"command": "implicit-reg verify", "seed": 0, "only": None, "preset": "quick"},
        "wall_seconds": 93.4,
        "verdict": "holds",
        "checks": checks,
        "trajectories": {
            "loss": "factorization",
            "grid": {"a": grid["a"].tolist(), "b": grid["b"].tolist(), "loss": loss.tolist()},
            "runs": [_run(name, 0.08, 60, penalty) for name, penalty in PENALTIES.items()],
        },
    }


def find(record, name):
    """A check of a record by its name."""
    return next(check for check in record["checks"] if check["name"] == name)


def troubled_record():
    """The same with predictions that fail, others that could not be measured, and a check without any case."""
    record = verify_record()
    record["verdict"] = "fails"
    backstitch, sam, central = (find(record, name) for name in ("backstitch", "sam", "central-flow"))
    case = backstitch["details"]["cases"][3]
    cell = case["truncations"][1]["fixed_time"]
    cell["error"] = [e * 0.2 * (i + 1) ** 1.3 for i, e in enumerate(cell["error"])]
    cell.update(measured=1.46, verdict="fails", reason="order 1.46 where 2 was predicted")
    case["verdict"] = "fails"
    backstitch.update(verdict="fails", measured=[1.0, 1.46])

    first, second = sam["details"]["cases"][0], sam["details"]["cases"][3]
    cell = first["truncations"][2]["one_step"]
    cell["error"][3:] = [None, None]
    cell["slopes"][2:] = [None, None]
    cell.update(measured=None, verdict="could not measure", reason="the error 1.0e-13 is too near to the floor 1.0e-13")
    second["truncations"][2]["fixed_time"].update(
        measured=None, error=[None] * 5, slopes=[None] * 4, verdict="could not measure", reason="the run diverged"
    )
    for case in (first, second):
        case["verdict"] = "could not measure"
    second["validity"].update(
        band="caution", x=[5.1, 2.6, 1.3, 0.7, 0.4], next_term=[1.02, None], term_ratio=[0.2, None], above_floor=None
    )
    sam.update(verdict="could not measure", measured=[1.0, 2.0, None])

    failed, unmeasured = central["details"]["cases"][0], central["details"]["cases"][4]
    failed.update(value=0.074, verdict="fails", reason="0.074 where at most 0.05 was wanted")
    unmeasured.update(
        value=None, mutant=None, verdict="could not measure", reason="the number is not finite: something diverged"
    )
    central["verdict"] = "fails"
    record["checks"].append(_check("my-method", "A method of one's own", "", "", (), []))
    return record


def full_record():
    """As many checks and cases as the table has, for the time and the size that a report takes."""
    record = verify_record()
    known = {check["name"]: check for check in record["checks"]}
    checks = [copy.deepcopy(known.get(name) or known["alternating"]) for name in NAMES]
    for check, name in zip(checks, NAMES, strict=True):
        check["name"] = name
        if name not in known:
            check["details"]["title"] = name.replace("-", " ").capitalize()
    return record | {"checks": checks}


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
