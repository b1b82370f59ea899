"""What the relative attention bias is worth: HSTU on MovieLens-1M with none, position, time and both.

    python -m experiments.ablation_bias --path=ml-1m             # 5 runs a seed, each as long as configs/ml_1m.py
    python -m experiments.ablation_bias --path=ml-1m --seeds=0 -- --config.train.epochs=20     # what is in results/
    python -m experiments.ablation_bias --quick

Published, one seed, HR@10: .2980 none, .3023 position, .3205 time, .3227 both. "Query time" measures the time of a key
from the event that is to be predicted, the paper's public code does the same; without it, from the token's own.
Runs and results as in `public_retrieval`.
"""

from __future__ import annotations

from experiments import retrieval_runs

NAME = "ablation_bias"
VARIANTS = {
    "none": ["--config.model.bias=none"],
    "position": ["--config.model.bias=position"],
    "time": ["--config.model.bias=time"],
    "both": [],
    "both-own-time": ["--config.model.use_query_time=false"],
}


def main() -> None:
    args = retrieval_runs.parser_of(__doc__).parse_args()
    for seed in retrieval_runs.seeds_of(args):
        for name, change in VARIANTS.items():
            retrieval_runs.run(NAME, name, seed, "configs/ml_1m.py", [*change, *args.change], args)
            print(retrieval_runs.table(NAME, list(VARIANTS)), flush=True)


if __name__ == "__main__":
    main()
