"""Beside the report: merging folders, packing task vectors, pre-training the bundled policy,
verifying a run.
"""
