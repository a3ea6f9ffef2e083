"""Looking at a bookie's files without its process: Apache BookKeeper's and ours alike.

Nothing here writes into a bookie's directory, opens a file there for writing, or takes a lock.
"""
