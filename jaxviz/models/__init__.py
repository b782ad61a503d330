"""The bundled networks: small Flax Linen modules to train, explain and test with."""
