"""`python -m neural_collapse`."""

import sys

from .cli import main

sys.exit(main())
