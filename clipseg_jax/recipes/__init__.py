"""The stages of each method's recipe: they join data, weights, tasks and loops. No maths."""
