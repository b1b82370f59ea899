"""What the loss is worth, beside the architecture: HSTU and SASRec on MovieLens-1M with each of three losses.

    python -m experiments.ablation_loss --path=ml-1m             # 6 runs a seed, each as long as configs/ml_1m.py
    python -m experiments.ablation_loss --path=ml-1m --seeds=0
    python -m experiments.ablation_loss --quick

128 negatives for each token (the paper's), 128 shared by 128 neighbouring tokens, and the full softmax.
Runs and results as in `public_retrieval`.
"""

from __future__ import annotations

from experiments import retrieval_runs

NAME = "ablation_loss"
CONFIGS = {"hstu": "configs/ml_1m.py", "sasrec": "configs/ml_1m.py:sasrec"}
LOSSES = ("per_token", "group", "full")


def main() -> None:
    args = retrieval_runs.parser_of(__doc__).parse_args()
    names = [f"{model}-{loss}" for model in CONFIGS for loss in LOSSES]
    for seed in retrieval_runs.seeds_of(args):
        for model, config in CONFIGS.items():
            for loss in LOSSES:
                change = [f"--config.loss.kind={loss}", *args.change]
                retrieval_runs.run(NAME, f"{model}-{loss}", seed, config, change, args)
                print(retrieval_runs.table(NAME, names), flush=True)


if __name__ == "__main__":
    main()
