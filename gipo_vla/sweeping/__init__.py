"""Many runs from one command.

``settings`` splits a command line into the sweep's own settings and those of its runs, ``values`` reads what
a single override lists, ``grid`` makes combinations of them, ``jobs`` turns combinations into named and
validated jobs, ``folders`` knows what is done and keeps the small data of it, ``estimate`` says what the rest
will cost, ``resources`` divides cores and GPUs, ``process`` is one running job, ``runner`` runs them all, and
``progress`` shows it.
"""
