"""Labelled image data sets as plain arrays."""
