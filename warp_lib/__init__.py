"""WARP, checked. This folder reads like the paper; begin with `warp.py`.

The anchor moves in `aligner.train`, SLERP takes its angle in `merging.angle`, runs are stored by
`runs.store.memoise`, fronts are drawn in `report.plots` and `report.study_plots`, and the study's
main number is `study.contrasts.contrast`. What is in the packages: docs/architecture.md.
"""
