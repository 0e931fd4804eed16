"""The side of ssljax: an experiment's compiled step, called as the loop calls it."""

from collections.abc import Callable


def stepper(exp) -> Callable[[int], None]:
    """A function that trains `exp` for a number of steps."""
    import jax

    from ssljax import sharding
    from ssljax.program import everywhere, Program
    from ssljax.run import Run

    mesh = sharding.make_mesh()
    jax.set_mesh(mesh)
    resident = jax.tree.map(lambda x: everywhere(x, mesh), exp.data.resident())
    feed = exp.data.feed(0, 0, mesh)
    first = next(feed)
    program = Program(exp, Run(), mesh, first, resident)
    state, metrics = program.init([first]), program.new_accumulator()

    def run(steps: int) -> None:
        nonlocal state, metrics
        for _ in range(steps):
            state, metrics = program.update(state, metrics, [[next(feed)]])
        jax.block_until_ready((state, metrics))

    return run
