"""bkctl: a BookKeeper in one binary."""

__version__ = "0.1.0"
