"""`bkctl shell`: Apache BookKeeper's `bookkeeper shell`, as far as it only reads, under its old names."""
