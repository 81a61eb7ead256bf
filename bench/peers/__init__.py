"""The parts of `bench/peers.py`, in the order of the data: contenders, environments, preparing, running, judging, page.

The files `make_*.py` write a peer's model inside that peer's environment; `worker.py` runs inside
any of them and asks one `engine_*.py`. Those import nothing of this folder but each other.
"""
