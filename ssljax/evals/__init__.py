"""Evaluators: factories of `state -> {name: number or picture}`, each number with its floor."""
