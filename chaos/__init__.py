"""Live chaos: two replicas, one ledger, the sandbox with faults, poisoned traffic, `kill -9`, SIGSTOP, a full disk.

    python -m chaos --engine talon_one --profile ci --seed 7

`plan` makes the orders and faults, `client` sends the orders and writes the history, `processes` starts the replicas
and attacks them, `run` is one run from start to end, and `checker`, which knows nothing of the others, judges what they
left: the history, the ledger with the log of its changes (`changes`), and the sandbox's own books. `sabotage` breaks
the product on purpose: a checker that has never failed proves nothing.
"""
