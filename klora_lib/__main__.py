"""``python -m klora_lib``: see klora_lib.cli.main."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
