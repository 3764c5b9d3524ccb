"""Sent once more: one message, an example, or a part of what there was."""
