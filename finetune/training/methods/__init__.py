"""Ways to train otherwise: few weights, against an adversary, on changed texts."""
