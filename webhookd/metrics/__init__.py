"""What monitoring sees: numbers, and whether we live and can work."""
