"""How a public function is called: its name in errors, the kinds of its arguments, its model."""
