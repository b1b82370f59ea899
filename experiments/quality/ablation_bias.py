"""Ablation of the relative attention bias: HSTU on MovieLens-1M with none, position, time, both.

    # 5 runs a seed, each as long as configs/ml_1m.py
    python -m experiments.quality.ablation_bias --path=ml-1m
    # what is in results/
    python -m experiments.quality.ablation_bias --path=ml-1m --seeds=0 -- --config.train.epochs=20
    python -m experiments.quality.ablation_bias --quick

Published, one seed, HR@10: .2980 none, .3023 position, .3205 time, .3227 both. "Query time"
measures the time of a key from the event that is to be predicted, the paper's public code does the
same; without it, from the token's own. Runs and results as in `public_retrieval`.
"""

from __future__ import annotations

from experiments.common import retrieval_runs

NAME = "ablation_bias"
VARIANTS = {
    "none": ("configs/ml_1m.py", ["--config.model.bias=none"]),
    "position": ("configs/ml_1m.py", ["--config.model.bias=position"]),
    "time": ("configs/ml_1m.py", ["--config.model.bias=time"]),
    "both": ("configs/ml_1m.py", []),
    "both-own-time": ("configs/ml_1m.py", ["--config.model.use_query_time=false"]),
}


if __name__ == "__main__":
    retrieval_runs.run_variants(NAME, VARIANTS, __doc__)
