"""Python runs this at the start of every program that the stress driver watches: on SIGUSR2 it writes where it stands."""

import faulthandler
import os
import signal

if "STRESS_STACKS" in os.environ:
    _stack = os.open(os.path.join(os.environ["STRESS_STACKS"], str(os.getpid())), os.O_CREAT | os.O_WRONLY)
    faulthandler.register(signal.SIGUSR2, file=_stack)
