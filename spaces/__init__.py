"""The web demo: `mobilevit-hub demo`, and the Space that this folder is.

`server` starts it and keeps it within its limits, `page` is what a visitor sees, `models` opens a checkpoint in every
runtime, `classification` and `heatmap` compute, `panels` writes the results as HTML.
"""
