"""The engine: training, evaluation and prediction, between the parts and the commands."""
