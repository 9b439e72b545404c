"""`python -m neural_collapse`."""

import sys

from .cli.main import main

sys.exit(main())
