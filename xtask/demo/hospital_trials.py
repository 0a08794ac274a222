"""How often the hospital demo's study ends as the demo shows, and what its figures are: a simulation of `hospital.yaml`.

    hospital_trials.py RECORDS [STUDIES]

RECORDS is `tests/data/wdbc.csv`. Needs NumPy. Three hospitals train a logistic regression of two outputs as agents do (whole
batches, gradients clipped, Gaussian noise on their sum, momentum), half of the records are held out, and every second model is
counted over in two score bins with Gaussian noise at each hospital. The first hospital's diagnoses are swapped from up to three
rounds after the second round on, until up to one evaluated round after the gate has kept a candidate out. The interval of the
accuracy is a normal one of the same confidence as the study's, with sampling error and noise: close to the coordinator's own, and
not it.
"""

import csv
import sys

import numpy as np

FEATURES = {
    "mean_radius": (6.0, 25.0),
    "mean_texture": (8.0, 40.0),
    "mean_smoothness": (0.05, 0.15),
    "mean_concavity": (0.0, 0.4),
    "mean_concave_points": (0.0, 0.2),
    "mean_symmetry": (0.1, 0.3),
    "worst_radius": (6.0, 40.0),
    "worst_texture": (12.0, 50.0),
    "worst_smoothness": (0.06, 0.2),
    "worst_concave_points": (0.0, 0.3),
}
# What the study's file says.
ROUNDS, EVERY, STEPS, RATE, MOMENTUM = 20, 2, 4, 1.0, 0.5
NOISE, CLIP, RHO, HELD_OUT, CONFIDENCE_Z = 9.0, 1.5, 0.05, 0.5, 1.6449
AT_LEAST, PATIENCE = 0.7, 2
# Of benign and malignant records, how many of a hundred are at each hospital: the first one has the most.
SHARES = np.array([[58, 27, 15], [34, 36, 30]]) / 100
# A record moves one cell of the scores, which have four sixths of rho; three hospitals add noise.
CELL_NOISE = np.sqrt(3.0 / (2.0 * RHO * 4 / 6))


def records(path):
    rows = list(csv.DictReader(open(path)))
    scaled = [
        [2 * (min(max(float(row[name]), low), high) - low) / (high - low) - 1 for name, (low, high) in FEATURES.items()]
        for row in rows
    ]
    malignant = np.array([row["diagnosis"] == "malignant" for row in rows], dtype=int)
    return np.hstack([np.array(scaled), np.ones((len(rows), 1))]), malignant


def probability(features, weights):
    return 1 / (1 + np.exp(-features @ (weights[1] - weights[0])))


def trained(rng, features, labels, start):
    """What a hospital gives: how far it moves the weights."""
    weights, velocity = start.copy(), np.zeros_like(start)
    for _ in range(STEPS):
        error = (probability(features, weights) - labels)[:, None] * features
        gradients = np.concatenate([-error, error], axis=1)
        norms = np.linalg.norm(gradients, axis=1)
        gradients *= np.minimum(1, CLIP / np.maximum(norms, 1e-9))[:, None]
        noised = gradients.sum(0) + rng.normal(0, NOISE * CLIP, start.size)
        velocity = MOMENTUM * velocity + noised.reshape(start.shape) / len(labels)
        weights -= RATE * velocity
    return weights - start


def lower_end(rng, features, labels, weights):
    """Of the accuracy, by noised counts of class and score bin."""
    cells = np.zeros((2, 2))
    np.add.at(cells, (labels, (probability(features, weights) >= 0.5).astype(int)), 1)
    cells += rng.normal(0, CELL_NOISE, cells.shape)
    total = cells.sum()
    accuracy = (cells[0, 0] + cells[1, 1]) / total
    within = min(max(accuracy, 0.02), 0.98)
    noise = CELL_NOISE**2 * 2 * (within**2 + (1 - within) ** 2) / total**2
    return accuracy - CONFIDENCE_Z * np.sqrt(within * (1 - within) / total + noise)


def study(rng, features, labels, improve_by):
    """How a study ends, and the lower ends of its good and bad rounds."""
    at = np.array([rng.choice(3, p=SHARES[label]) for label in labels])
    held = rng.random(len(labels)) < HELD_OUT
    weights = np.zeros((2, features.shape[1]))
    good, best, without = weights, None, 0
    bad_from, swapped, until, kept_out = 3 + rng.integers(0, 4), False, None, 0
    ends = {"first": [], "bad": []}
    for number in range(1, ROUNDS + 1):
        if number >= bad_from and until is None:
            swapped = True
        if until is not None and number > until:
            swapped = False
        told = np.where(swapped & (at == 0), 1 - labels, labels)
        sites = [(at == site) & ~held for site in range(3)]
        moves = [trained(rng, features[of], told[of], weights) for of in sites]
        candidate = weights + np.average(moves, axis=0, weights=[of.sum() for of in sites])
        if number % EVERY and number < ROUNDS:
            weights = candidate
            continue
        low = lower_end(rng, features[held], told[held], candidate)
        if number == EVERY:
            ends["first"].append(low)
        if swapped and until is None:
            ends["bad"].append(low)
        if low < AT_LEAST:
            kept_out += swapped
            weights = good
            if swapped and until is None:
                until = number + EVERY * rng.integers(0, 2)
            continue
        weights = good = candidate
        if best is None or low >= best + improve_by:
            best, without = low, 0
        else:
            without += 1
        if without >= PATIENCE:
            return {"round": number, "as_told": kept_out > 0 and not swapped and number < ROUNDS, **ends}
    return {"round": ROUNDS, "as_told": False, **ends}


def main():
    features, labels = records(sys.argv[1])
    studies = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    for improve_by in [0.04, 0.02]:
        rng = np.random.default_rng(1)
        told = [study(rng, features, labels, improve_by) for _ in range(studies)]
        ended = np.sort([of["round"] for of in told])
        first = np.concatenate([of["first"] for of in told])
        bad = np.concatenate([of["bad"] for of in told])
        print(f"improve_by {improve_by}, {studies} studies")
        print(f"  as the demo tells: {sum(of['as_told'] for of in told)}; to the last round: {(ended == ROUNDS).sum()}")
        low, high = ended[studies // 20], ended[-1 - studies // 20]
        print(f"  nine of ten end in round {low} to {high}")
        print(f"  lower end in round {EVERY}: {first.mean():.2f}, standard deviation {first.std():.2f}; of bad rounds: at most {bad.max():.2f}")


if __name__ == "__main__":
    main()
