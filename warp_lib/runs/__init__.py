"""What was computed once and is kept: store, checkpoints, random streams, progress, folders,
processes, result tables.
"""
