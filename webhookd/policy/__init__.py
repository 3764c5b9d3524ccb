"""What is decided, pure: which endpoints, when again, how much at a time, what an answer means, who is dead."""
