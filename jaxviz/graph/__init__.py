"""The one mechanism: a model as its jaxpr, with named layers, cutting and rewriting."""
