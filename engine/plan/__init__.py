"""What training on a cluster needs, computed from measured parts (`profile --plan`)."""
