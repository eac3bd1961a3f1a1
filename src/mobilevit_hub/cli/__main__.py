"""`python -m mobilevit_hub.cli`, which launchers of several processes start."""

import sys

from .main import main

sys.exit(main())
