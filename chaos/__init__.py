"""Live chaos: two replicas, one ledger, the sandbox with faults, poisoned traffic, `kill -9`, SIGSTOP, a full disk.

    python -m chaos --engine talon_one --profile ci --seed 7

`plan` says what will be sent, `client` sends it and writes the history, `processes` starts what is attacked and attacks
it, `run` tells a run from top to bottom, and `checker`, which knows nothing of all that, judges what they left behind:
the history, the ledger with the log of its changes (`changes`), and the sandbox's own books. `sabotage` breaks the
product on purpose: a checker that has never failed proves nothing.
"""
