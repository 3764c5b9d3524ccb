"""Attempts and deliveries: whether it arrived, and why not."""
