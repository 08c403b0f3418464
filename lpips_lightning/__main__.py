"""``python -m lpips_lightning``: the command ``lpips-lightning``, where its script is not on the path."""

import sys

from lpips_lightning.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
