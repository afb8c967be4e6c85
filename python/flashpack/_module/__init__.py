"""Loading into modules."""
