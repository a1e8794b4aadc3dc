"""``python -m locus_lightning`` is ``locus``."""

from locus_lightning.cli.main import main

if __name__ == "__main__":
    main()
