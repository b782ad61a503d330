"""Pictures of explanations: every function draws the arrays it is given and returns a Figure."""
