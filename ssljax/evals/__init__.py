"""Evaluators: factories that take functions of an experiment and return state -> {name: number}."""
