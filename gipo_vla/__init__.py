"""Reinforcement learning of vision-language-action policies from replayed, stale data with GIPO."""

import sys

# While Python looks for the module of "python -m gipo_vla.train" and the like, sys.argv begins with "-m".
# From here on, and so also while torch is imported, Ctrl-C is answered with one line; workers leave that to
# their parent.
if sys.argv[:1] == ["-m"] and not any(word.endswith(".worker") for word in sys.orig_argv):
    from gipo_vla.distributed.signals import leave_at_once_on_interrupt

    leave_at_once_on_interrupt()
