"""Many runs from one command.

``settings`` splits a command line into the sweep's own settings and those of its runs, ``values`` reads what
a single override lists, ``grid`` makes combinations of them, ``jobs`` turns combinations into named and
validated jobs, ``folders`` knows what is done, what the rest will cost, and keeps the small data of it,
``process`` is one running job with its share of cores and GPUs, ``runner`` runs them all, and ``progress``
shows it.
"""
