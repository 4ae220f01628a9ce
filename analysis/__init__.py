"""Looking at trained detectors: where they look, what they depend on, where they err."""
