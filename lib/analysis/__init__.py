"""What the records say: answers, comparisons, claims, figures, README's table."""
