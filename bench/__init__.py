"""`python -m bench`: measures the service beside what it is compared with, in one run, on this machine.

Each contender runs in a process of its own, one worker, and they take turns in short rounds, so that whatever else the
machine does hits all of them alike. What counts are ratios of the same round; medians and quartiles are over rounds.

- `carts`: what is sent, and what the engine answers; `engine`: that engine
- `contenders`: who is measured, how each is started, and what a right answer of each is
- `load`: the client, closed loop (requests in flight) and open loop (requests a second)
- `machine`: what /proc says: time on the processor, memory, who else is busy
- `rounds`: the measuring itself; `report`: tables, aims, docs/performance.md

Beside that, each a command of its own with a section on that page:

- `overload`: two and five times too much, and an engine that hangs; `flood`: the client for it
- `memory`: what is held under load that repeats nothing; `consume`: what redeeming once costs
- `results`: the files they write, and when not to measure; `publish`: puts the page together
"""
