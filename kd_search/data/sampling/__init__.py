"""Order, batches and replacement of training samples."""
