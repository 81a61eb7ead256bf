"""The search room: which architecture of a space is the best one that keeps its limits.

numpy and scipy only. Read in the order of the data:

    space.py      what may be built: a TOML of choices, numbered from 0 to size - 1
    cost.py       FLOPs, parameters, bytes: sums over blocks
    entropy.py    the training-free score of MeRino, by a closed form instead of an SVD
    scores.py     that score and plainer ones behind one interface
    fitting.py    robust non-negative least squares and its conformal band
    latency.py    milliseconds of an architecture on a device, fitted or estimated
    memory.py     bytes that a device must have free
    problem.py    one request as columns: the score, and every limited quantity
    tables.py     those columns over a whole space, by outer sums over blocks
    regime.py     what the training budget says: beta, expected loss
    candidate.py  one architecture as a search lists it
    classes.py    architectures that differ only in the order of their blocks
    multisets.py  those of one width as rows, and how many members each has
    pareto.py     the exact non-dominated front
    survey.py     what a search remembers: the best, the front, what each limit costs
    exact.py      the constrained optimum of an enumerable space
    class_sweep.py  the same by classes, for larger spaces of one width
    dynamic.py    dynamic programming over blocks, for spaces beyond that and scores that are sums
    evolution.py  the paper's evolutionary search, for spaces beyond that
    engine.py     SearchRequest -> SearchOutcome: what the command calls
"""
