"""Training of the bundled networks: one pure fit, its history, run folders."""
