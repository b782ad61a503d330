"""What shapiq 1.x and shap give for the net of tests/attribution/test_interactions.py.

python tests/reference/run_coalition_peers.py   # needs numpy, shapiq, shap
"""

import itertools
import pathlib

import numpy as np
import shap
import shapiq

COUNT = 8
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, COUNT)).astype(np.float32)
FIRST, SECOND = (RNG.normal(size=s).astype(np.float32) for s in ((COUNT, 6), (6, 3)))


def score(x):
    return np.tanh(x.astype(np.float64) @ FIRST) @ SECOND[:, 1].astype(np.float64)


found = {}
for name, index in (("k_sii", "k-SII"), ("stii", "STII"), ("fsii", "FSII")):
    values, pairs = np.zeros((2, COUNT)), np.zeros((2, COUNT, COUNT))
    for n, x in enumerate(X):
        game = shapiq.ExactComputer(lambda z, x=x: score(z * x) - score(0 * x), n_players=COUNT)
        out = game(index, order=2)
        for i in range(COUNT):
            values[n, i] = out[(i,)]
        for i, j in itertools.combinations(range(COUNT), 2):
            pairs[n, i, j] = pairs[n, j, i] = out[(i, j)]
    found |= {f"{name}/values": values, f"{name}/pairs": pairs}

# Halves, quarters, single numbers: rows of a linkage matrix of SciPy.
tree = np.array([[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11], [12, 13]], float)
sizes = [2, 2, 2, 2, 4, 4, 8]
linkage = np.column_stack([tree, [1, 1, 1, 1, 2, 2, 3], sizes]).astype(float)
masker = shap.maskers.Partition(np.zeros((1, COUNT)), clustering=linkage)
for budget in (30, 1000):
    explainer = shap.PartitionExplainer(score, masker)
    found[f"owen/{budget}"] = explainer(X.astype(np.float64), max_evals=budget).values
print(shapiq.__version__, shap.__version__, {k: v.shape for k, v in found.items()})
np.savez(pathlib.Path(__file__).with_name("coalition_peers.npz"), **found)
