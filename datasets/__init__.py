"""Detection data in COCO format: reading, augmenting, batching, scoring, checking, and generated shapes."""
