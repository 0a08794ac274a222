"""What the noise of DP-SGD does to the figures by which updates are compared: norm ratio and cosine.

    outliers.py DATA

DATA is the folder with wdbc.csv and digits.csv (`tests/data`). Needs NumPy. Ten sites train for ten rounds, on a tenth of the
records each: logistic regression of 62 parameters on tumours, and the network of `poisoning.rs` with 9,658 on digits, as agents
do (Poisson samples, each record's gradient clipped to 1, Gaussian noise on the sum, the mean of the expected batch). Updates
become one by their median. Printed are rows of a Markdown table, of five seeds: what nine good sites show, and what the tenth
shows when it sends the opposite of what it learnt, ten times; epsilon is what ten such rounds cost a record at delta 1e-5,
by moments (Mironov, Talwar, Zhang 2019, section 3.3).
"""

import csv
import math
import sys
from pathlib import Path

import numpy as np

SEEDS, SITES, ROUNDS, STEPS, RATE = 5, 10, 10, 10, 0.2
NOISE = [0.0, 0.3, 1.0, 2.0, 4.0]


def tumours(folder):
    rows = list(csv.DictReader(open(folder / "wdbc.csv")))
    labels = np.array([int(r.pop("diagnosis") == "malignant") for r in rows])
    return np.array([[float(v) for v in r.values()] for r in rows]), labels


def digits(folder):
    rows = list(csv.DictReader(open(folder / "digits.csv")))
    labels = np.array([int(r.pop("digit")) for r in rows])
    return np.array([[float(v) for v in r.values()] for r in rows]), labels


def softmax_error(logits, labels):
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    e /= e.sum(axis=1, keepdims=True)
    e[np.arange(len(labels)), labels] -= 1.0
    return e


def outer(error, inputs):
    """Of each record: the gradient of a linear layer, weights and then bias."""
    weights = error[:, :, None] * inputs[:, None, :]
    return np.concatenate([weights.reshape(len(error), -1), error], axis=1)


class Logistic:
    params, rate = 62, 0.5

    def first(self, rng):
        return np.zeros(self.params)

    def gradients(self, p, x, y):
        weights, bias = p[:60].reshape(2, 30), p[60:]
        return outer(softmax_error(x @ weights.T + bias, y), x)


class Network:
    """8 filters of 3x3, ReLU, 32 hidden, ReLU, 10 classes."""

    params, rate = 9_658, 0.2

    def first(self, rng):
        parts = [(72, 9), (8, 9), (9_216, 288), (32, 288), (320, 32), (10, 32)]
        return np.concatenate([rng.uniform(-1, 1, n) / math.sqrt(fan) for n, fan in parts])

    def gradients(self, p, x, y):
        filters, p = p[:72].reshape(8, 9), p[72:]
        filter_bias, p = p[:8], p[8:]
        hidden, p = p[:9_216].reshape(32, 288), p[9_216:]
        hidden_bias, p = p[:32], p[32:]
        last, last_bias = p[:320].reshape(10, 32), p[320:]
        windows = np.lib.stride_tricks.sliding_window_view(x.reshape(-1, 8, 8), (3, 3), (1, 2))
        windows = windows.reshape(len(x), 36, 9)
        seen = windows @ filters.T + filter_bias
        flat = np.maximum(seen, 0).transpose(0, 2, 1).reshape(len(x), 288)
        inner = flat @ hidden.T + hidden_bias
        active = np.maximum(inner, 0)
        error = softmax_error(active @ last.T + last_bias, y)
        of_inner = (error @ last) * (inner > 0)
        of_seen = (of_inner @ hidden).reshape(len(x), 8, 36) * (seen.transpose(0, 2, 1) > 0)
        of_filters = (of_seen @ windows).reshape(len(x), 72)
        of_bias = of_seen.sum(axis=2)
        return np.concatenate([of_filters, of_bias, outer(of_inner, flat), outer(error, active)], axis=1)


def update(model, base, x, y, noise, rng):
    p = base.copy()
    batch = RATE * len(y)
    for _ in range(STEPS):
        drawn = rng.random(len(y)) < RATE
        total = noise * rng.standard_normal(len(p))
        if drawn.any():
            g = model.gradients(p, x[drawn], y[drawn])
            total += (g / np.maximum(1.0, np.linalg.norm(g, axis=1, keepdims=True))).sum(axis=0)
        p -= model.rate * total / batch
    return p - base


def compare(updates):
    norms = np.linalg.norm(updates, axis=1)
    centre = np.median(updates, axis=0)
    return norms / np.median(norms), updates @ centre / (norms * np.linalg.norm(centre))


def epsilon(noise):
    if noise == 0:
        return math.inf
    best = math.inf
    for order in range(2, 257):
        logs = [
            math.lgamma(order + 1) - math.lgamma(k + 1) - math.lgamma(order - k + 1)
            + k * math.log(RATE) + (order - k) * math.log1p(-RATE) + k * (k - 1) / (2 * noise**2)
            for k in range(order + 1)
        ]
        top = max(logs)
        rdp = (top + math.log(sum(math.exp(v - top) for v in logs))) / (order - 1)
        cost = ROUNDS * STEPS * rdp
        cost += math.log1p(-1 / order) - (math.log(1e-5) + math.log(order)) / (order - 1)
        best = min(best, cost)
    return best


def measured(model, data, noise):
    good_ratios, good_cosines, bad_ratios, bad_cosines = [], [], [], []
    for seed in range(SEEDS):
        rng = np.random.default_rng(20261130 + seed)
        x, y = data
        order = rng.permutation(len(y))
        parts = [order[s::SITES] for s in range(SITES)]
        base = model.first(rng)
        for _ in range(ROUNDS):
            updates = np.array([update(model, base, x[part], y[part], noise, rng) for part in parts])
            updates[-1] *= -10.0
            ratios, cosines = compare(updates)
            good_ratios.extend(ratios[:-1])
            good_cosines.extend(cosines[:-1])
            bad_ratios.append(ratios[-1])
            bad_cosines.append(cosines[-1])
            base = base + np.median(updates, axis=0)
    return map(np.array, (good_ratios, good_cosines, bad_ratios, bad_cosines))


def main():
    folder = Path(sys.argv[1])
    for name, model, (x, y) in [
        ("tumours, 62", Logistic(), tumours(folder)),
        ("digits, 9,658", Network(), digits(folder)),
    ]:
        low, high = x.min(axis=0), x.max(axis=0)
        x = 2 * (x - low) / np.where(high > low, high - low, 1) - 1
        for noise in NOISE:
            ratios, cosines, bad_ratios, bad_cosines = measured(model, (x, y), noise)
            spent = epsilon(noise)
            spent = "no bound" if math.isinf(spent) else f"{spent:.1f}"
            low, middle = np.quantile(cosines, [0.01, 0.5])
            print(
                f"| {name} | {noise:g} | {spent} | {np.quantile(ratios, 0.99):.2f} | {middle:.2f} | {low:.2f} "
                f"| {bad_ratios.min():.1f} | {np.median(bad_cosines):.2f} | {bad_cosines.max():.2f} |",
                flush=True,
            )


main()
