"""`python -m rwkernels`."""

import sys

from rwkernels.cli import main

sys.exit(main())
