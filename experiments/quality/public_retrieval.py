"""Retrieval on public data, seed by seed: HSTU, SASRec, a larger Transformer, and popularity.

    python -m experiments.quality.public_retrieval --dataset=beauty --path=ratings_Beauty.csv
    python -m experiments.quality.public_retrieval --path=ml-1m --models=hstu,sasrec,hstu-large
    python -m experiments.quality.public_retrieval --dataset=ml-20m --path=ml-20m  # made for a GPU
    python -m experiments.quality.public_retrieval --quick  # one epoch of each: does it run?

Every run goes to runs/public_retrieval/ and resumes where it stopped; one that has its file in
experiments/results/public_retrieval/ (DATASET-MODEL-SEED.json, see `retrieval_runs`) is not
repeated. Prints the table of all seeds and writes significance.json there: paired t-tests over
users of HSTU against the others.
"""

from __future__ import annotations

import json

from experiments.common import retrieval_runs

NAME = "public_retrieval"
CONFIGS = {  # dataset -> model -> config file and variant
    "ml-1m": {
        "hstu": "configs/ml_1m.py",
        "hstu-large": "configs/ml_1m.py:large",
        "hstu-swiglu": "configs/ml_1m.py:swiglu",
        "sasrec": "configs/ml_1m.py:sasrec",
        "transformer": "configs/ml_1m.py:transformer",
    },
    "beauty": {
        "hstu": "configs/amazon.py:beauty",
        "sasrec": "configs/amazon.py:beauty-sasrec",
        "transformer": "configs/amazon.py:beauty-transformer",
    },
    "ml-20m": {
        "hstu": "configs/ml_20m.py",
        "hstu-large": "configs/ml_20m.py:large",
        "sasrec": "configs/ml_20m.py:sasrec",
    },
    "books": {
        "hstu": "configs/amazon.py",
        "hstu-large": "configs/amazon.py:books-large",
        "sasrec": "configs/amazon.py:books-sasrec",
    },
}


def main() -> None:
    parser = retrieval_runs.parser_of(__doc__)
    parser.add_argument("--dataset", default="ml-1m", choices=list(CONFIGS))
    parser.add_argument(
        "--models", default="hstu,sasrec", help="of those that the dataset has a config of"
    )
    args = parser.parse_args()
    configs = CONFIGS[args.dataset]
    if unknown := set(args.models.split(",")) - set(configs):
        parser.error(f"--models: {args.dataset} has {', '.join(configs)}, not {', '.join(unknown)}")
    names = [f"{args.dataset}-{model}" for model in configs]
    for seed in retrieval_runs.seeds_of(args):
        for model in args.models.split(","):
            retrieval_runs.run(
                NAME, f"{args.dataset}-{model}", seed, configs[model], args.change, args
            )
            print(retrieval_runs.table(NAME, names), flush=True)
    print(write_significance())


def write_significance() -> str:
    """Compare HSTU with SASRec and the Transformer on each dataset; keep and return the JSON."""
    pairs = [
        (f"{data}-hstu", f"{data}-{rival}")
        for data in CONFIGS
        for rival in ("sasrec", "transformer")
    ]
    found = [retrieval_runs.significance(NAME, *pair) for pair in pairs]
    text = json.dumps([each for each in found if each], indent=1)
    (retrieval_runs.RESULTS / NAME / "significance.json").write_text(text + "\n")
    return text


if __name__ == "__main__":
    main()
