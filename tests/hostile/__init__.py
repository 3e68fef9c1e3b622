"""Attack the line from outside, as producers do that know nothing of it."""
