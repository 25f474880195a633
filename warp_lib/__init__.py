"""WARP, checked. This folder reads like the paper; begin with `warp.py`.

The anchor moves in `aligner.train`, SLERP takes its angle in `merging.angle`, runs are stored by
`runs.store.memoise`, and figures are drawn in `report`. What is in the rooms: docs/architecture.md.
"""
