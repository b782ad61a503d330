"""Which inputs an output depends on: explanations of single examples."""
