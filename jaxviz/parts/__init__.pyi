# Its modules alone.
