"""Conversion of published checkpoints into the folder that both twins read, and export to the phone."""
