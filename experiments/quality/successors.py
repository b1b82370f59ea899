"""Layers that came after HSTU, each against `configs/ml_1m.py` on MovieLens-1M.

    # 3 seeds, each as long as configs/ml_1m.py
    python -m experiments.quality.successors --path=ml-1m
    # what is in results/
    python -m experiments.quality.successors --path=ml-1m --seeds=0 -- --config.train.epochs=20
    python -m experiments.quality.successors --quick

`swiglu`: a feed-forward layer after the attention of a block (`model.swiglu_width`), as language
models have it. `hstu` is `both` of `ablation_bias`, the same command. Runs and results as in
`public_retrieval`.
"""

from __future__ import annotations

from experiments.common import retrieval_runs

NAME = "successors"
VARIANTS = {
    "hstu": ("configs/ml_1m.py", []),
    "swiglu": ("configs/ml_1m.py:swiglu", []),
}


if __name__ == "__main__":
    retrieval_runs.run_variants(NAME, VARIANTS, __doc__)
