"""Classical recommenders that a model has to beat, learnt and judged on the same split."""
