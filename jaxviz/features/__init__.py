"""What a network has learned: its filters, and images that excite what is inside it."""
