"""Ablation of the loss: HSTU and SASRec on MovieLens-1M with each of three losses.

    # 6 runs a seed, each as long as configs/ml_1m.py
    python -m experiments.quality.ablation_loss --path=ml-1m
    python -m experiments.quality.ablation_loss --path=ml-1m --seeds=0
    python -m experiments.quality.ablation_loss --quick

128 negatives for each token (the paper's), 128 shared by 128 neighbouring tokens, and the full
softmax. Runs and results as in `public_retrieval`.
"""

from __future__ import annotations

from experiments.common import retrieval_runs

NAME = "ablation_loss"
VARIANTS = {
    f"{model}-{loss}": (config, [f"--config.loss.kind={loss}"])
    for model, config in (("hstu", "configs/ml_1m.py"), ("sasrec", "configs/ml_1m.py:sasrec"))
    for loss in ("per_token", "group", "full")
}


if __name__ == "__main__":
    retrieval_runs.run_variants(NAME, VARIANTS, __doc__)
