"""A sweep's records in DomainBed's form: random numbers with few digits, so that there are ties."""

from itertools import combinations

import numpy as np

ENVIRONMENTS = 4


def record(test_envs, step, accuracies, dataset="PACS", algorithm="ERM", trial_seed=0, hparams_seed=0):
    """One record; ``accuracies`` are (in, out) by environment."""
    args = {
        "dataset": dataset,
        "algorithm": algorithm,
        "test_envs": list(test_envs),
        "trial_seed": trial_seed,
        "hparams_seed": hparams_seed,
    }
    scores = {}
    for env, (in_acc, out_acc) in enumerate(accuracies):
        scores |= {f"env{env}_in_acc": in_acc, f"env{env}_out_acc": out_acc}
    return {"args": args, "step": step} | scores


def sweep_records():
    """Three trials of two settings on PACS and VLCS; the second algorithm has no pairs, and one trial
    less on VLCS."""
    random = np.random.RandomState(7)
    singles = [(env,) for env in range(ENVIRONMENTS)]
    pairs = list(combinations(range(ENVIRONMENTS), 2))
    records = []
    for dataset, algorithm in (("PACS", "ERM"), ("PACS", "RD-MLDG"), ("VLCS", "ERM"), ("VLCS", "RD-MLDG")):
        folds = singles + pairs if algorithm == "ERM" else singles
        for trial in range(2 if (dataset, algorithm) == ("VLCS", "RD-MLDG") else 3):
            for hparams in range(2):
                for test_envs in folds:
                    for step in (0, 300, 600):
                        scores = random.randint(50, 100, (ENVIRONMENTS, 2)) / 100
                        records.append(
                            record(test_envs, step, scores.tolist(), dataset, algorithm, trial, hparams)
                        )
    return records
