"""Rule sets for `rewrite`: other pullbacks, or the same ones computed faster."""
