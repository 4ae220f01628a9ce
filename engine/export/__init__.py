"""`export`: a trained detector in forms that run without this code; each format is a module."""
