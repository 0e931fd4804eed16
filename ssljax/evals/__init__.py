"""Evaluators: factories of `state -> {name: number or picture}`, each number beside its floor."""
