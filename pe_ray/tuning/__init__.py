"""Hyperparameter search inside one privacy budget, with Ray Tune."""
