"""Ledger of results: experiments/ledger.json, and the pages and charts made from it.

Rows are written from finished runs:

    python -m ssljax.ledger --runs runs/simclr,seeds=3 --paper "ResNet-18" \\
        --paper-numbers knn/accuracy 90.3 --note "..."
    python -m ssljax.ledger                              # writes the pages from ledger.json

`rows` are what runs have recorded, `pages` are experiments/README.md and a page for each row,
`charts` their pictures, and `commands` says a row's command by today's flags.
"""

from ssljax.ledger.rows import HERE, name_of, read_rows

__all__ = ["HERE", "name_of", "read_rows"]
