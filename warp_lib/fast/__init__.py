"""The same numbers sooner: token by token decoding, matrix products, CUDA graphs, and what this
machine can do.
"""
