"""The command line of lib/analysis/readme.py."""

from lib.analysis.readme import main

if __name__ == "__main__":
    main()
