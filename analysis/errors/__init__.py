"""Where a detector errs."""
